//! The MQTT door's devices, as the console asks for them.

use crate::console::{Answer, DeviceDoor};
use crate::mqtt::{Devices, NoAnswer, NoFirmware, NotKept, Setting};
use bytes::Bytes;
use http::StatusCode;
use std::time::Duration;

pub struct Door(pub Devices);

impl Door {
    async fn keep(&self, id: &str, setting: Setting, payload: Bytes) -> Result<(), (StatusCode, String)> {
        self.0.keep(id, setting, payload).await.map_err(|refused| {
            let status = match refused {
                NotKept::Id => StatusCode::BAD_REQUEST,
                NotKept::TooLong | NotKept::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                NotKept::TooMany => StatusCode::INSUFFICIENT_STORAGE,
                NotKept::Log(_) => StatusCode::SERVICE_UNAVAILABLE,
            };
            (status, refused.to_string())
        })
    }
}

impl DeviceDoor for Door {
    fn list(&self) -> serde_json::Value {
        serde_json::json!(self.0.list())
    }

    fn set_config<'a>(&'a self, id: &'a str, config: Bytes) -> Answer<'a, ()> {
        Box::pin(self.keep(id, Setting::Config, config))
    }

    fn set_log<'a>(&'a self, id: &'a str, level: Bytes) -> Answer<'a, ()> {
        Box::pin(self.keep(id, Setting::Log, level))
    }

    fn device(&self, id: &str) -> Option<serde_json::Value> {
        self.0.list().into_iter().find(|device| device.id == id).map(|device| serde_json::json!(device))
    }

    fn set_firmware<'a>(&'a self, id: &'a str, version: String, signature: String, image: Bytes) -> Answer<'a, ()> {
        Box::pin(async move { self.0.keep_firmware(id, version, signature, image).await.map_err(no_firmware) })
    }

    fn drop_firmware<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { self.0.drop_firmware(id).await.map_err(no_firmware) })
    }

    fn command<'a>(&'a self, id: &'a str, command: Bytes, within: Duration) -> Answer<'a, Bytes> {
        Box::pin(async move {
            self.0.command(id, command, within).await.map_err(|refused| {
                let status = match refused {
                    NoAnswer::NotConnected => StatusCode::NOT_FOUND,
                    NoAnswer::TooLong | NoAnswer::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
                    NoAnswer::Busy => StatusCode::TOO_MANY_REQUESTS,
                    NoAnswer::Late => StatusCode::GATEWAY_TIMEOUT,
                };
                (status, refused.to_string())
            })
        })
    }
}

fn no_firmware(refused: NoFirmware) -> (StatusCode, String) {
    let status = match refused {
        NoFirmware::Id | NoFirmware::Version | NoFirmware::Signature => StatusCode::BAD_REQUEST,
        NoFirmware::Length => StatusCode::PAYLOAD_TOO_LARGE,
        NoFirmware::TooMany => StatusCode::INSUFFICIENT_STORAGE,
        NoFirmware::NoPlace | NoFirmware::Io(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, refused.to_string())
}

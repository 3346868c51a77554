//! Credentials from the AWS IoT credential provider: a device certificate in, short-lived keys out.

use super::aws::{Asking, IotConfig, trust};
use super::http::HttpClient;
use super::tls::Trust;
use bytes::Bytes;
use reqsign_aws_v4::Credential;
use reqsign_core::{Context, Error, HttpSend, ProvideCredential, Result, time::Timestamp};
use serde::Deserialize;

#[derive(Debug)]
pub struct IotProvider {
    http: Asking,
    url: String,
    thing: String,
}

#[derive(Deserialize)]
struct Answer {
    credentials: Keys,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Keys {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: String,
}

impl IotProvider {
    pub fn new(config: &IotConfig) -> Self {
        let trust = Trust { client: Some((config.cert.clone(), config.key.clone())), ..trust(&None) };
        IotProvider {
            http: Asking(HttpClient::new(trust)),
            url: format!("https://{}/role-aliases/{}/credentials", config.endpoint, config.role_alias),
            thing: config.thing.clone(),
        }
    }
}

impl ProvideCredential for IotProvider {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> Result<Option<Credential>> {
        let mut request = http::Request::get(&self.url);
        if !self.thing.is_empty() {
            request = request.header("x-amzn-iot-thingname", &self.thing);
        }
        let request = request.body(Bytes::new()).map_err(|error| Error::config_invalid(error.to_string()))?;
        let answer = self.http.http_send(request).await?;
        if !answer.status().is_success() {
            return Err(Error::permission_denied(format!("{} answers {}", self.url, answer.status())));
        }
        credential(answer.body()).map(Some)
    }
}

fn credential(answer: &[u8]) -> Result<Credential> {
    // What could not be read is not quoted: it may hold keys.
    let Answer { credentials } = serde_json::from_slice(answer)
        .map_err(|_| Error::unexpected("the credential provider's answer is not JSON"))?;
    Ok(Credential {
        access_key_id: credentials.access_key_id,
        secret_access_key: credentials.secret_access_key,
        session_token: Some(credentials.session_token),
        expires_in: Some(credentials.expiration.parse::<Timestamp>()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_providers_answer_becomes_a_credential_that_expires() {
        let answer = br#"{"credentials":{"accessKeyId":"A","secretAccessKey":"S","sessionToken":"T","expiration":"2030-01-18T09:18:06Z"}}"#;
        let credential = credential(answer).unwrap();
        assert_eq!((credential.access_key_id.as_str(), credential.session_token.as_deref()), ("A", Some("T")));
        assert_eq!(credential.expires_in.unwrap().as_second(), 1_894_958_286);
        assert!(super::credential(b"{}").is_err());
    }
}

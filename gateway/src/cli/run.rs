//! `headwater run`: the gateway itself. Flags and environment stand above the file.

use crate::config::{Config, Override};
use crate::daemon;
use crate::units::Span;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub struct Run {
    /// Configuration file; without one, embedded defaults on loopback.
    #[arg(long, value_name = "FILE", env = "HEADWATER_CONFIG")]
    config: Option<PathBuf>,
    /// Directory of the log.
    #[arg(long, value_name = "DIR", env = "HEADWATER_DATA")]
    data: Option<String>,
    /// Budget of the log, such as "16 GiB".
    #[arg(long, value_name = "SIZE", env = "HEADWATER_MAX_BYTES")]
    max_bytes: Option<String>,
    /// Address of the MQTT listener, or off; port 0 takes a free one and the ready line tells it.
    #[arg(long, value_name = "ADDR", env = "HEADWATER_MQTT_LISTEN")]
    mqtt_listen: Option<String>,
    /// Address of the MQTT over TLS listener, or off; its certificate stands in the file.
    #[arg(long, value_name = "ADDR", env = "HEADWATER_MQTT_TLS_LISTEN")]
    mqtt_tls_listen: Option<String>,
    /// Address of the AWS APIs, or off.
    #[arg(long, value_name = "ADDR", env = "HEADWATER_API_LISTEN")]
    api_listen: Option<String>,
    /// Address of console, /metrics, /healthz and /readyz, or off.
    #[arg(long, value_name = "ADDR", env = "HEADWATER_CONSOLE_LISTEN")]
    console_listen: Option<String>,
    /// How long a stop may take to drain.
    #[arg(long, value_name = "SPAN", default_value = "10 s", env = "HEADWATER_STOP_WITHIN")]
    stop_within: Span,
    /// Stop when the process that started this one dies. For `demo` and `bench`.
    #[arg(long, hide = true)]
    stop_with_parent: bool,
    /// A bug on purpose, by its name in `log/mutation.rs`, for the tests that want to see it noticed.
    #[cfg(feature = "sim")]
    #[arg(long, hide = true)]
    mutation: Option<String>,
}

impl Run {
    pub fn run(self) -> Result<()> {
        if self.stop_with_parent {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        }
        #[cfg(feature = "sim")]
        if let Some(name) = &self.mutation {
            crate::log::sim::turn_on_for_process(name).map_err(super::usage)?;
        }
        let config = Config::load(self.config.as_deref(), &self.overrides())?;
        daemon::run(&config, self.stop_within.0)
    }

    fn overrides(&self) -> Vec<Override> {
        let all = [
            ("data.dir", &self.data, "--data or HEADWATER_DATA"),
            ("data.max_bytes", &self.max_bytes, "--max-bytes or HEADWATER_MAX_BYTES"),
            ("mqtt.listen", &self.mqtt_listen, "--mqtt-listen or HEADWATER_MQTT_LISTEN"),
            ("mqtt.tls.listen", &self.mqtt_tls_listen, "--mqtt-tls-listen or HEADWATER_MQTT_TLS_LISTEN"),
            ("api.listen", &self.api_listen, "--api-listen or HEADWATER_API_LISTEN"),
            ("console.listen", &self.console_listen, "--console-listen or HEADWATER_CONSOLE_LISTEN"),
        ];
        let given = |(key, value, source): (&'static str, &Option<String>, &'static str)| {
            Some(Override { key, value: value.clone()?, source })
        };
        all.into_iter().filter_map(given).collect()
    }
}

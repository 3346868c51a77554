//! MQTT over TLS with mosquitto's clients and certificates that openssl made: the certificate names the device, the device
//! has its rights, and nobody else gets in.

use headwater_tests::certificates::Certificates;
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::tools::{self, program, run};
use headwater_tests::{aws, need};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const BOUND: Duration = Duration::from_secs(30);

struct Site {
    gateway: Gateway,
    port: String,
    certificates: Certificates,
    publish: PathBuf,
}

fn site() -> Option<Site> {
    let publish = program("mosquitto_pub")?;
    program("openssl")?;
    let certificates = Certificates::new();
    certificates.device("pump-7", "ca");
    certificates.device("intruder", "stranger");
    let port = tools::free_port();
    let toml = format!(
        "[mqtt.tls]\nlisten = \"127.0.0.1:{port}\"\ncert = {:?}\nkey = {:?}\nclient_ca = {:?}\n\
         [[route]]\ntopics = [\"dev/+/t\"]\nstream = \"default\"\nkey = \"{{identity}}\"\n\
         [[allow]]\nidentity = \"*\"\npublish = [\"dev/{{identity}}/t\"]\nsubscribe = []\n",
        certificates.cert("server"),
        certificates.key("server"),
        certificates.cert("ca")
    );
    Some(Site { gateway: Setup::new(&toml).start(), port: port.to_string(), certificates, publish })
}

impl Site {
    /// What `mosquitto_pub` makes of it, with the certificate of `device`, if any.
    fn publish(&self, device: Option<&str>, topic: &str, tls: &str) -> Output {
        let mut command = Command::new(&self.publish);
        command.args([
            "-h",
            "localhost",
            "-p",
            &self.port,
            "-V",
            "5",
            "-q",
            "1",
            "-i",
            "any-name",
            "-t",
            topic,
            "-m",
            "x",
        ]);
        command.args(["--tls-version", tls, "--cafile", &self.certificates.cert("ca")]);
        if let Some(device) = device {
            command.args(["--cert", &self.certificates.cert(device), "--key", &self.certificates.key(device)]);
        }
        run(&mut command, BOUND)
    }
}

const NO_TOOLS: &str = "mosquitto_pub or openssl is not installed";

#[test]
fn a_certificate_names_the_device_over_tls_1_2_and_1_3() {
    let site = need!(site(), NO_TOOLS);
    for version in ["tlsv1.2", "tlsv1.3"] {
        let done = site.publish(Some("pump-7"), "dev/pump-7/t", version);
        assert!(done.status.success(), "{version}: {}\n{}", String::from_utf8_lossy(&done.stderr), site.gateway.log());
    }
    let kept = aws::read_stream(site.gateway.api, "default");
    assert_eq!(kept.iter().map(|got| got.key.as_str()).collect::<Vec<_>>(), ["pump-7", "pump-7"]);
}

#[test]
fn a_device_may_not_publish_in_the_name_of_another() {
    let site = need!(site(), NO_TOOLS);
    let done = site.publish(Some("pump-7"), "dev/pump-8/t", "tlsv1.3");
    let said = String::from_utf8_lossy(&done.stderr).to_lowercase();
    assert!(said.contains("not authorized") || !done.status.success(), "mosquitto_pub was told: {said}");
    assert!(aws::read_stream(site.gateway.api, "default").is_empty());
}

#[test]
fn nobody_comes_in_without_a_certificate_of_ours() {
    let site = need!(site(), NO_TOOLS);
    for device in [None, Some("intruder")] {
        assert!(!site.publish(device, "dev/intruder/t", "tlsv1.3").status.success(), "{device:?} came in");
    }
    assert!(aws::read_stream(site.gateway.api, "default").is_empty());
    assert!(site.publish(Some("pump-7"), "dev/pump-7/t", "tlsv1.3").status.success(), "the others still do");
}

#[test]
fn listening_to_the_world_without_an_authenticator_is_refused_with_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let check = |toml: &str| -> (Option<i32>, String) {
        let path: &Path = &home.path().join("open.toml");
        std::fs::write(path, toml).unwrap();
        let file = path.display().to_string();
        let done = run(&mut headwater_tests::gateway::headwater(&["check", &file]), BOUND);
        let said = [done.stdout, done.stderr].concat();
        (done.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    for section in ["mqtt", "api", "console"] {
        let (code, said) = check(&format!("[{section}]\nlisten = \"0.0.0.0:0\"\n"));
        assert_eq!(code, Some(2), "[{section}] open to the world: {said}");
        assert!(said.contains("insecure") && said.contains(&format!("{section}.listen")), "[{section}]: {said}");
    }
}

//! The ways to credentials, each through a service that hands them out as AWS does, each shown to sign what a real door takes.
//!
//! Where a source is stands in environment variables, so every case runs in a child process of its own. In each the keys are
//! wrong at first: the door refuses, everything is held, and the right ones are found without a restart.

use crate::headwater::{Site, audit};
use crate::rig::{Audit, Fast, Rig};
use headwater::api::{AccessKey, ApiConfig};
use headwater_tests::certificates::Certificates;
use headwater_tests::identity::{
    CONTAINER_PATH, CONTAINER_TOKEN, EXTERNAL_ID, Identity, Keys, ROLE, ROLE_ALIAS, SOURCE, THING, WEB_IDENTITY,
};
use headwater_tests::need;
use headwater_tests::tools::{free_port, program};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The case that the child plays, and the port of its identity service.
const CASE: &str = "HEADWATER_TEST_CASE";
const PORT: &str = "HEADWATER_TEST_PORT";
const MINUTE: Duration = Duration::from_secs(60);
const KEY: (&str, &str) = ("ASIAGATEWAY012345678", "given/secret+");
const NEXT_KEY: (&str, &str) = ("ASIAROTATED012345678", "rotated/secret");

/// Plays a case in a process that has these variables, and none of the machine's own that AWS tools read.
fn play(case: &str, home: &Path, variables: &[(&str, String)]) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "credentials::child", "--ignored", "--nocapture"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            child.env_remove(name);
        }
    }
    child.env("HOME", home).env(CASE, case).env("AWS_REGION", "eu-west-1");
    child.envs(variables.iter().map(|(name, value)| (*name, value.as_str())));
    let done = child.output().unwrap();
    let said = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    // A name that matches no test would succeed too.
    assert!(done.status.success() && said.contains("1 passed"), "{case}: {said}");
}

/// The same with the port of the identity service in the variables where `{port}` stands.
fn play_at_a_port(case: &str, variables: &[(&str, &str)]) {
    let (home, port) = (tempfile::tempdir().unwrap(), free_port());
    // No instance metadata unless the case is about it: on a machine in the cloud it would answer.
    let mut all = vec![(PORT, port.to_string()), ("AWS_EC2_METADATA_DISABLED", "true".to_owned())];
    let home_text = home.path().display().to_string();
    for (name, value) in variables {
        let value = value.replace("{port}", &port.to_string()).replace("{home}", &home_text);
        all.retain(|(known, _)| known != name);
        all.push((name, value));
    }
    std::fs::write(home.path().join("token"), format!("{WEB_IDENTITY}\n")).unwrap();
    std::fs::write(home.path().join("container-token"), format!("{CONTAINER_TOKEN}\n")).unwrap();
    let profiles = format!(
        "[profile by-role]\nrole_arn = {ROLE}\nexternal_id = {EXTERNAL_ID}\nsource_profile = source\n\
         [profile by-web-identity]\nrole_arn = {ROLE}\nweb_identity_token_file = {home_text}/token\n"
    );
    let (id, secret) = SOURCE;
    let sources = format!("[source]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n");
    std::fs::create_dir(home.path().join(".aws")).unwrap();
    std::fs::write(home.path().join(".aws/config"), profiles).unwrap();
    std::fs::write(home.path().join(".aws/credentials"), sources).unwrap();
    play(case, home.path(), &all);
}

#[test]
fn instance_metadata_gives_keys_that_the_door_takes() {
    let metadata = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:{port}");
    play_at_a_port("instance", &[metadata, ("AWS_EC2_METADATA_DISABLED", "false")]);
}

#[test]
fn container_metadata_gives_keys_that_the_door_takes() {
    let full = format!("http://127.0.0.1:{{port}}{CONTAINER_PATH}");
    let token = ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "{home}/container-token");
    play_at_a_port("container", &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &full), token]);
}

const STS: (&str, &str) = ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:{port}");

#[test]
fn a_web_identity_gives_keys_that_the_door_takes() {
    let token = ("AWS_WEB_IDENTITY_TOKEN_FILE", "{home}/token");
    play_at_a_port("web identity", &[STS, token, ("AWS_ROLE_ARN", ROLE)]);
}

#[test]
fn a_web_identity_of_a_profile_gives_keys_that_the_door_takes() {
    play_at_a_port("web identity of a profile", &[STS]);
}

#[test]
fn an_assumed_role_gives_keys_that_the_door_takes() {
    let (id, secret) = SOURCE;
    play_at_a_port("assumed role", &[STS, ("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)]);
}

#[test]
fn the_role_of_a_profile_gives_keys_that_the_door_takes() {
    play_at_a_port("role of a profile", &[STS]);
}

#[test]
fn the_iot_credential_provider_gives_keys_for_a_devices_certificate_that_the_door_takes() {
    need!(program("openssl"), "openssl is not installed");
    let (home, certificates) = (tempfile::tempdir().unwrap(), Certificates::new());
    certificates.device(THING, "ca");
    certificates.device("intruder", "stranger");
    play_iot("iot", home.path(), &certificates, THING);
    play_iot("iot with a certificate of others", home.path(), &certificates, "intruder");
    std::fs::copy(certificates.cert(THING), home.path().join("next-cert")).unwrap();
    std::fs::copy(certificates.key(THING), home.path().join("next-key")).unwrap();
    play_iot("iot with a certificate that is renewed", home.path(), &certificates, "intruder");
}

fn play_iot(case: &str, home: &Path, certificates: &Certificates, device: &str) {
    let files = [
        (certificates.cert("ca"), "ca"),
        (certificates.cert("server"), "server.pem"),
        (certificates.key("server"), "server.key"),
        (certificates.cert(device), "cert"),
        (certificates.key(device), "key"),
    ];
    for (from, name) in files {
        std::fs::copy(from, home.join(name)).unwrap();
    }
    let bundle = ("AWS_CA_BUNDLE", certificates.cert("ca"));
    play(case, home, &[bundle, (PORT, free_port().to_string()), ("AWS_EC2_METADATA_DISABLED", "true".into())]);
}

/// Ten minutes in which the metadata service first fails and then gives expired keys, while the door has new ones already.
#[test]
fn ten_minutes_without_credentials_lose_nothing() {
    let metadata = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:{port}");
    play_at_a_port("ten minutes", &[metadata, ("AWS_EC2_METADATA_DISABLED", "false")]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the tests above, with their variables in its environment"]
async fn child() {
    let Some(case) = std::env::var_os(CASE) else { return };
    let port = std::env::var(PORT).unwrap().parse().unwrap();
    let role = format!(r#","assume_role":"{ROLE}","external_id":"{EXTERNAL_ID}""#);
    match case.to_str().unwrap() {
        "instance" => delivers("instance", port, "").await,
        "container" => delivers("container", port, "").await,
        "web identity" => delivers("web identity", port, "").await,
        "web identity of a profile" => delivers("web identity", port, r#","profile":"by-web-identity""#).await,
        "assumed role" => delivers("role", port, &role).await,
        "role of a profile" => delivers("role", port, r#","profile":"by-role""#).await,
        "iot" => delivers("iot", port, &iot(port)).await,
        "iot with a certificate of others" => sends_nothing(port, &iot(port)).await,
        "iot with a certificate that is renewed" => renewed(port, &iot(port)).await,
        "ten minutes" => ten_minutes(port).await,
        other => panic!("no such case: {other}"),
    }
}

fn iot(port: u16) -> String {
    let home = std::env::var("HOME").unwrap();
    format!(
        r#","credentials":"iot","iot":{{"endpoint":"localhost:{port}","role_alias":"{ROLE_ALIAS}","thing":"{THING}","cert":"{home}/cert","key":"{home}/key"}}"#
    )
}

async fn identity(port: u16, more: &str, keys: Keys) -> Identity {
    match more.contains("iot") {
        false => Identity::start(port, keys).await,
        true => Identity::start_tls(port, keys, Path::new(&std::env::var("HOME").unwrap())).await,
    }
}

/// A door that takes requests signed with this key alone.
async fn site((id, secret): (&str, &str)) -> Site {
    Site::with(2, ApiConfig { access_keys: vec![access_key(id, secret)], ..ApiConfig::default() }).await
}

fn access_key(id: &str, secret: &str) -> AccessKey {
    AccessKey { id: id.into(), secret: secret.into() }
}

fn sink(site: &Site, more: &str) -> String {
    let endpoint = site.addr();
    format!(r#"{{"type":"kinesis","name":"site","endpoint":"http://{endpoint}","required":true{more}}}"#)
}

async fn delivers(way: &str, port: u16, more: &str) {
    let identity = identity(port, more, Keys::lasting(KEY.0, "another secret")).await;
    let site = site(KEY).await;
    let mut rig = Rig::new(1);
    rig.put(500, 10).await;
    rig.start(&sink(&site, more)).await;
    rig.troubled("denies access: InvalidSignatureException", MINUTE).await;
    assert_eq!((rig.backlog("site"), site.record_count()), (500, 0));
    assert!(identity.given(way) > 0, "{:?}", identity.refused());
    identity.give(Some(Keys::lasting(KEY.0, KEY.1)));
    rig.drained("site", MINUTE).await;
    assert_eq!(audit(&rig, &site), Audit { arrived: 500, ..Audit::default() });
    assert_eq!(rig.trouble(), None);
    let asked = identity.given(way);
    rig.put(500, 10).await;
    rig.drained("site", MINUTE).await;
    assert_eq!(identity.given(way), asked, "keys that last are not asked for again");
    assert!(identity.refused().is_empty(), "{:?}", identity.refused());
}

async fn sends_nothing(port: u16, more: &str) {
    let identity = identity(port, more, Keys::lasting(KEY.0, KEY.1)).await;
    let site = site(KEY).await;
    let mut rig = Rig::new(1);
    rig.put(100, 10).await;
    rig.start(&sink(&site, more)).await;
    rig.troubled("no usable credentials", MINUTE).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((rig.backlog("site"), site.record_count()), (100, 0));
    assert!(identity.refused().contains_key("no certificate of ours"), "{:?}", identity.refused());
}

/// The certificate that was read first was used until a restart, though its file had long been renewed.
async fn renewed(port: u16, more: &str) {
    let _identity = identity(port, more, Keys::lasting(KEY.0, KEY.1)).await;
    let site = site(KEY).await;
    let mut rig = Rig::new(1);
    rig.put(100, 10).await;
    rig.start(&sink(&site, more)).await;
    rig.troubled("no usable credentials", MINUTE).await;
    let home = std::env::var("HOME").unwrap();
    for name in ["cert", "key"] {
        std::fs::copy(format!("{home}/next-{name}"), format!("{home}/{name}")).unwrap();
    }
    rig.drained("site", MINUTE).await;
    assert_eq!(audit(&rig, &site), Audit { arrived: 100, ..Audit::default() });
}

/// The same for the authorities that a sink trusts.
#[tokio::test(flavor = "multi_thread")]
async fn authorities_that_are_renewed_are_found_without_a_restart() {
    need!(program("openssl"), "openssl is not installed");
    let (home, certificates, port) = (tempfile::tempdir().unwrap(), Certificates::new(), free_port());
    std::fs::copy(certificates.cert("ca"), home.path().join("ca")).unwrap();
    std::fs::copy(certificates.cert("server"), home.path().join("server.pem")).unwrap();
    std::fs::copy(certificates.key("server"), home.path().join("server.key")).unwrap();
    let trusted = home.path().join("trusted");
    std::fs::copy(certificates.cert("stranger"), &trusted).unwrap();
    // Whatever it answers: it is about the handshake.
    let _there = Identity::start_tls(port, Keys::lasting(KEY.0, KEY.1), home.path()).await;
    let mut rig = Rig::new(1);
    let ca = trusted.display();
    let endpoint = format!("https://localhost:{port}");
    rig.start(&format!(
        r#"{{"type":"kinesis","name":"site","endpoint":"{endpoint}","credentials":"none","ca":"{ca}"}}"#
    ))
    .await;
    rig.troubled("invalid peer certificate", MINUTE).await;
    std::fs::copy(certificates.cert("ca"), &trusted).unwrap();
    rig.troubled("failed: ", MINUTE).await;
}

async fn ten_minutes(port: u16) {
    let identity = identity(port, "", Keys::lasting(KEY.0, KEY.1)).await;
    let mut site = site(KEY).await;
    let clock = Fast::start();
    let mut rig = Rig::with_clock(1, clock.clock.clone());
    rig.put(500, 10).await;
    rig.start(&sink(&site, "")).await;
    rig.drained("site", MINUTE).await;
    // The keys are rotated; the machine does not have the new ones yet.
    let next = ApiConfig { access_keys: vec![access_key(NEXT_KEY.0, NEXT_KEY.1)], ..ApiConfig::default() };
    site.reopen(next).await;
    let began_ms = clock.now_ms();
    let out_for_ms = || clock.now_ms() - began_ms;
    let mut reasons = Vec::new();
    while out_for_ms() < 10 * 60_000 {
        match out_for_ms() {
            0..200_000 => {}
            200_000..400_000 => identity.give(None),
            _ => identity.give(Some(Keys::expired(NEXT_KEY.0, NEXT_KEY.1))),
        }
        rig.put(20, 10).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        reasons.extend(rig.trouble());
    }
    assert_eq!(site.record_count(), 500, "nothing went through meanwhile");
    assert_eq!(rig.backlog("site"), rig.total() - 500);
    for why in ["UnrecognizedClientException", "no usable credentials"] {
        assert!(reasons.iter().any(|reason| reason.contains(why)), "never {why}: {reasons:?}");
    }
    assert!(identity.refused().get("out of order") > Some(&0), "{:?}", identity.refused());
    assert!(identity.given("instance") > 2, "expired keys were given");
    let age = rig.figure("headwater_sink_backlog_age_seconds", "site");
    assert!(age >= 500.0, "the oldest record has waited ten minutes: {age} s");
    identity.give(Some(Keys::lasting(NEXT_KEY.0, NEXT_KEY.1)));
    rig.drained("site", MINUTE).await;
    assert_eq!(audit(&rig, &site), Audit { arrived: rig.total(), ..Audit::default() });
    assert_eq!(rig.trouble(), None);
}

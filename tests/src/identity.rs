//! The AWS services that hand out keys, on a loopback port: instance metadata (IMDSv2 only), container metadata, STS, and the
//! IoT credential provider behind mutual TLS.
//!
//! Each asks for what the real one asks for (session token, authorization token, web identity token, a signature made with
//! the source's keys, external id, a device's certificate) and refuses whoever does not bring it. What it gives out, and
//! whether, is up to the test.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use ring::{digest, hmac};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub const SESSION_TOKEN: &str = "metadata-session-token";
pub const CONTAINER_PATH: &str = "/v2/credentials/gateway";
pub const CONTAINER_TOKEN: &str = "container-authorization-token";
pub const WEB_IDENTITY: &str = "header.claims.signature";
pub const ROLE: &str = "arn:aws:iam::123456789012:role/gateway";
pub const EXTERNAL_ID: &str = "site-42";
pub const THING: &str = "gateway-7";
pub const ROLE_ALIAS: &str = "headwater";
/// Source keys that may assume the role.
pub const SOURCE: (&str, &str) = ("AKIASOURCE0123456789", "source/secret+");

/// Keys as they are given out.
#[derive(Clone, Debug)]
pub struct Keys {
    pub id: String,
    pub secret: String,
    /// RFC 3339.
    pub expiration: String,
}

impl Keys {
    pub fn lasting(id: &str, secret: &str) -> Self {
        Keys { id: id.into(), secret: secret.into(), expiration: "2099-12-31T23:59:59Z".into() }
    }

    pub fn expired(id: &str, secret: &str) -> Self {
        Keys { expiration: "2020-01-01T00:00:00Z".into(), ..Keys::lasting(id, secret) }
    }
}

#[derive(Default)]
struct State {
    /// `None`: every question is answered with 500.
    keys: Option<Keys>,
    /// What was given keys, by the way they were asked for.
    given: BTreeMap<&'static str, u64>,
    /// What was not, and why.
    refused: BTreeMap<&'static str, u64>,
}

/// The services at work; they end when this is dropped.
pub struct Identity {
    state: Arc<Mutex<State>>,
    task: AbortHandle,
}

impl Drop for Identity {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Identity {
    pub async fn start(port: u16, keys: Keys) -> Self {
        Self::listen(port, keys, None).await
    }

    /// Over TLS, with the files `server.pem` and `server.key` of a folder, for whoever has a certificate of its `ca`.
    pub async fn start_tls(port: u16, keys: Keys, files: &Path) -> Self {
        let pem = |name: &str| -> Vec<_> {
            let path = files.join(name);
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            read.expect("a certificate of openssl")
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(pem("ca"));
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let key = PrivateKeyDer::from_pem_file(files.join("server.key")).expect("a key of openssl");
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the default versions")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(pem("server.pem"), key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("the certificate fits the key")));
        Self::listen(port, keys, Some(acceptor)).await
    }

    async fn listen(port: u16, keys: Keys, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("the port was free a moment ago");
        let state = Arc::new(Mutex::new(State { keys: Some(keys), ..State::default() }));
        let task = tokio::spawn(accept(listener, tls, state.clone())).abort_handle();
        Identity { state, task }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// Gives these from now on; `None`: answers 500.
    pub fn give(&self, keys: Option<Keys>) {
        self.state().keys = keys;
    }

    /// How often keys were given out in this way: "instance", "container", "web identity", "role" or "iot".
    pub fn given(&self, way: &str) -> u64 {
        self.state().given.get(way).copied().unwrap_or(0)
    }

    /// How often somebody was sent away, by reason.
    pub fn refused(&self) -> BTreeMap<&'static str, u64> {
        self.state().refused.clone()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let (tls, state) = (tls.clone(), state.clone());
        connections.spawn(async move {
            match tls {
                None => serve(socket, &state).await,
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => serve(socket, &state).await,
                    Err(_) => refuse(&mut state.lock().expect("no test panics with it"), "no certificate of ours"),
                },
            }
        });
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(socket: T, state: &Mutex<State>) {
    let service = service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let (status, body) = state.lock().expect("no test panics with it").answer(&head, &body);
        let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
        Ok::<_, hyper::Error>(response.expect("a response"))
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
}

fn refuse(state: &mut State, why: &'static str) {
    *state.refused.entry(why).or_default() += 1;
}

type Reply = (u16, String);

impl State {
    fn answer(&mut self, head: &hyper::http::request::Parts, body: &[u8]) -> Reply {
        const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
        let header = |name: &str| header(&head.headers, name);
        let path = head.uri.path();
        let Some(keys) = self.keys.clone() else { return self.refusal(500, "out of order") };
        if path == "/latest/api/token" {
            let asks = head.method == Method::PUT && header("x-aws-ec2-metadata-token-ttl-seconds").is_some();
            return if asks { (200, SESSION_TOKEN.into()) } else { self.refusal(400, "no time to live") };
        }
        if let Some(role) = path.strip_prefix(ROLES) {
            if header("x-aws-ec2-metadata-token") != Some(SESSION_TOKEN) {
                return self.refusal(401, "no session token");
            }
            return if role.is_empty() { (200, "gateway-role".into()) } else { self.give("instance", &keys) };
        }
        if path == CONTAINER_PATH {
            let known = header("authorization") == Some(CONTAINER_TOKEN);
            return if known { self.give("container", &keys) } else { self.refusal(401, "no authorization token") };
        }
        if path == format!("/role-aliases/{ROLE_ALIAS}/credentials") {
            let known = header("x-amzn-iot-thingname") == Some(THING);
            return if known { self.give("iot", &keys) } else { self.refusal(403, "another thing") };
        }
        if path == "/" { self.sts(head, body, &keys) } else { self.refusal(404, "no such path") }
    }

    fn sts(&mut self, head: &hyper::http::request::Parts, body: &[u8], keys: &Keys) -> Reply {
        let mut text = head.uri.query().unwrap_or_default().to_owned();
        if !body.is_empty() {
            text = String::from_utf8_lossy(body).into_owned();
        }
        let asked: BTreeMap<_, _> = text.split('&').filter_map(|pair| pair.split_once('=')).collect();
        let asked = |name: &str| asked.get(name).map(|value| decoded(value)).unwrap_or_default();
        if asked("RoleArn") != ROLE {
            return self.refusal(403, "another role");
        }
        let way = match asked("Action").as_str() {
            "AssumeRoleWithWebIdentity" if asked("WebIdentityToken") != WEB_IDENTITY => {
                return self.refusal(403, "no web identity token");
            }
            "AssumeRoleWithWebIdentity" => "web identity",
            "AssumeRole" if asked("ExternalId") != EXTERNAL_ID => return self.refusal(403, "no external id"),
            "AssumeRole" if !is_signed(head, body) => return self.refusal(403, "no signature of the source"),
            "AssumeRole" => "role",
            _ => return self.refusal(400, "no such action"),
        };
        self.give(way, keys)
    }

    fn give(&mut self, way: &'static str, keys: &Keys) -> Reply {
        *self.given.entry(way).or_default() += 1;
        let Keys { id, secret, expiration } = keys;
        let answer = match way {
            "iot" => format!(
                r#"{{"credentials":{{"accessKeyId":"{id}","secretAccessKey":"{secret}","sessionToken":"session","expiration":"{expiration}"}}}}"#
            ),
            "instance" | "container" => format!(
                r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"session","Expiration":"{expiration}"}}"#
            ),
            _ => {
                let action = if way == "role" { "AssumeRole" } else { "AssumeRoleWithWebIdentity" };
                format!(
                    "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result><Credentials>\
                     <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey>\
                     <SessionToken>session</SessionToken><Expiration>{expiration}</Expiration>\
                     </Credentials></{action}Result></{action}Response>"
                )
            }
        };
        (200, answer)
    }

    fn refusal(&mut self, status: u16, why: &'static str) -> Reply {
        refuse(self, why);
        let code = if status == 403 { "AccessDenied" } else { "InternalFailure" };
        (status, format!("<ErrorResponse><Error><Code>{code}</Code><Message>{why}</Message></Error></ErrorResponse>"))
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, tail @ ..] = rest {
        let escaped = match (first, tail) {
            (b'%', [a, b, ..]) => std::str::from_utf8(&[*a, *b]).ok().and_then(|hex| u8::from_str_radix(hex, 16).ok()),
            _ => None,
        };
        bytes.push(escaped.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether [`SOURCE`] signed this request for STS, Signature Version 4.
fn is_signed(head: &hyper::http::request::Parts, body: &[u8]) -> bool {
    let proof = || {
        let fields = header(&head.headers, "authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?;
        let field = |name: &str| fields.split([',', ' ']).find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        let scope = field("Credential")?.strip_prefix(SOURCE.0)?.strip_prefix('/')?;
        let (names, date) = (field("SignedHeaders")?, header(&head.headers, "x-amz-date")?);
        let [day, region, "sts", "aws4_request"] = scope.split('/').collect::<Vec<_>>()[..] else { return None };
        if !names.split(';').any(|name| name == "host") {
            return None;
        }
        let mut pairs: Vec<_> = head.uri.query().unwrap_or_default().split('&').collect();
        pairs.sort_unstable();
        let mut canonical = format!("{}\n/\n{}\n", head.method, pairs.join("&"));
        for name in names.split(';') {
            canonical += &format!("{name}:{}\n", header(&head.headers, name)?.trim());
        }
        canonical += &format!("\n{names}\n{}", hex(digest::digest(&digest::SHA256, body).as_ref()));
        let hash = hex(digest::digest(&digest::SHA256, canonical.as_bytes()).as_ref());
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, format!("AWS4{}", SOURCE.1).as_bytes());
        for part in [day, region, "sts", "aws4_request"] {
            key = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&key, part.as_bytes()).as_ref());
        }
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{hash}");
        Some(hex(hmac::sign(&key, to_sign.as_bytes()).as_ref()) == field("Signature")?)
    };
    proof() == Some(true)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

//! The console: what an operator's tools ask for over plain HTTP, and the pages for people, of which video is the first.
//!
//! `/metrics` for Prometheus, `/healthz` (the process answers), `/readyz` (it is started and the log commits) and
//! `/status`, a page of JSON about streams, shards and sinks, read the log and change nothing; `/devices` is the way down to
//! devices. The pages are files (`assets`) that ask for the rest; what video they show is a guest's (`http::Guest`).

mod assets;
mod config;
mod devices;
mod pages;
mod sign_in;
#[cfg(test)]
mod tests;
mod token;

pub use config::ConsoleConfig;
pub use devices::{Answer, DeviceDoor, Devices};
pub use token::TokenError;

use crate::http::{Body, BodyLimits, Budget, Guest, Handler, Input, Server, Wants, read_body};
use crate::log::Log;
use crate::metrics::{CardLife, Metrics};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use pages::Page;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use token::Token;
use tokio::sync::{Mutex, Semaphore, watch};

/// Pages that walk over all streams, made at once.
const PAGES_AT_ONCE: usize = 2;
/// Requests to devices under way; most of their time they wait for an answer.
const TO_DEVICES_AT_ONCE: usize = 32;
/// Bodies of the guest's and the sign-in's requests in memory, in bytes, and how long one may take to come.
const BODIES_BYTES: u64 = 1 << 20;
const BODY_WITHIN: Duration = Duration::from_secs(10);

/// Gives what `/status` shows as `sinks`: a list of what each has to say of each stream.
pub type SinksStatus = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// The running console.
pub struct Console {
    server: Server,
}

#[derive(Debug, thiserror::Error)]
pub enum ConsoleStartError {
    #[error("the console is off: console.listen = \"off\"")]
    Off,
    #[error("the console cannot listen on {listen}: {source}")]
    Listen { listen: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl Console {
    /// `ready` says whether all listeners of the gateway are bound.
    pub async fn start(
        config: &ConsoleConfig,
        log: Log,
        metrics: Arc<Metrics>,
        card: CardLife,
        sinks: SinksStatus,
        devices: Devices,
        ready: watch::Receiver<bool>,
        guest: Option<Arc<dyn Guest>>,
    ) -> Result<Console, ConsoleStartError> {
        let token = config.token_file.as_deref().map(Token::load).transpose()?;
        let (pages, scrape) = (Semaphore::new(PAGES_AT_ONCE), Mutex::default());
        let for_this_box = token.is_none() && !config.insecure_no_token;
        let to_devices = Semaphore::new(TO_DEVICES_AT_ONCE);
        let bodies = Budget::new(BODIES_BYTES);
        let desk = Desk {
            log,
            metrics,
            card,
            sinks,
            devices,
            ready,
            token,
            for_this_box,
            pages,
            to_devices,
            scrape,
            guest,
            bodies,
        };
        let desk = Arc::new(desk);
        let listen = config.listen.address().ok_or(ConsoleStartError::Off)?;
        let server = Server::start(listen, config.limits(), desk).await;
        let server = server.map_err(|source| ConsoleStartError::Listen { listen, source })?;
        Ok(Console { server })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    pub async fn stop(self, bound: Duration) {
        self.server.stop(bound).await;
    }
}

struct Desk {
    log: Log,
    metrics: Arc<Metrics>,
    card: CardLife,
    sinks: SinksStatus,
    devices: Devices,
    ready: watch::Receiver<bool>,
    token: Option<Token>,
    /// There is no token, so this is for programs on the box: not for a page in its browser whose name points here.
    for_this_box: bool,
    pages: Semaphore,
    to_devices: Semaphore,
    /// Some figures are set when they are asked for: one at a time.
    scrape: Mutex<()>,
    /// Answers what is below `/video/`.
    guest: Option<Arc<dyn Guest>>,
    /// Bodies of the guest's and the sign-in's requests.
    bodies: Budget,
}

impl Handler for Desk {
    type Session = ();

    fn connected(&self) {}

    fn turned_away(&self) {
        self.metrics.reject("console", "too_many_connections");
    }

    async fn handle(&self, _: &(), request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        if let Some(answer) = self.for_everybody(path).then(|| assets::answer(path, request.headers())).flatten() {
            return answer;
        }
        let wants = self.guest.as_ref().and_then(|guest| guest.wants(request.method(), path));
        if let (Some(guest), Some(wants)) = (&self.guest, wants) {
            return self.visit(&**guest, wants, request).await;
        }
        if path == "/login" {
            return self.sign_in(request).await;
        }
        let is_devices = devices::is_device_path(request.uri().path());
        let page = match is_devices {
            true => self.device_page(request).await,
            false => self.page(&request).await,
        };
        let mut response = respond(page);
        let (status, headers) = (response.status(), response.headers_mut());
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                let allowed = if is_devices { "GET, HEAD, PUT, POST, DELETE" } else { "GET, HEAD" };
                headers.insert(ALLOW, HeaderValue::from_static(allowed));
            }
            _ => {}
        }
        response
    }
}

fn respond(page: Page) -> Response<Body> {
    let mut response = Response::new(page.body.into());
    *response.status_mut() = page.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page.content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Desk {
    /// A page of the web whose name points here gets not even the files.
    fn for_everybody(&self, path: &str) -> bool {
        path == "/video" || path.starts_with("/assets/")
    }

    async fn visit(&self, guest: &dyn Guest, wants: Wants, request: Request<Incoming>) -> Response<Body> {
        if let Some(refused) = self.turn_away(&request) {
            return respond(refused);
        }
        let (head, body) = request.into_parts();
        let bytes_max = match wants {
            Wants::Whole(bytes) => bytes,
            Wants::Stream | Wants::Open => 0,
        };
        let limits = BodyLimits { bytes_max, within: BODY_WITHIN, cost: 1 };
        match read_body(body, limits, &self.bodies).await {
            Ok((body, _charge)) => guest.answer(head, Input::Whole(body)).await,
            Err(error) => respond(Page::text(StatusCode::BAD_REQUEST, format!("{error}\n"))),
        }
    }

    async fn page(&self, request: &Request<Incoming>) -> Page {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Page::text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
        }
        let path = request.uri().path();
        // Probes have no token, and learn nothing but whether the gateway works.
        match path {
            "/healthz" => return pages::healthz(),
            "/readyz" => return pages::readyz(*self.ready.borrow(), self.log.trouble()),
            _ => {}
        }
        if let Some(refused) = self.turn_away(request) {
            return refused;
        }
        let Ok(_turn) = self.pages.acquire().await else {
            return Page::text(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping\n");
        };
        match path {
            "/metrics" => {
                let _alone = self.scrape.lock().await;
                pages::metrics(&self.log, &self.metrics, &self.card)
            }
            "/status" => pages::status(&self.log, (self.sinks)(), *self.ready.borrow() && self.log.trouble().is_none()),
            _ => Page::text(
                StatusCode::NOT_FOUND,
                "there are /video, /metrics, /healthz, /readyz, /status and /devices\n",
            ),
        }
    }

    async fn device_page(&self, request: Request<Incoming>) -> Page {
        if let Some(refused) = self.turn_away(&request) {
            return refused;
        }
        let Ok(_turn) = self.to_devices.try_acquire() else {
            return Page::text(StatusCode::TOO_MANY_REQUESTS, "too many requests to devices are under way\n");
        };
        // The list is as long as there are devices.
        let is_list = request.uri().path() == "/devices";
        let _page = if is_list { self.pages.acquire().await.ok() } else { None };
        devices::page(request, &self.devices, self.token.is_some() || self.for_this_box).await
    }

    /// Who may not see anything but the probes.
    fn turn_away(&self, request: &Request<Incoming>) -> Option<Page> {
        if self.token.as_ref().is_some_and(|token| !token.is_in(request.headers())) {
            self.metrics.reject("console", "no_token");
            let says = "send the token of [console] token_file as \"Authorization: Bearer TOKEN\"\n";
            return Some(Page::text(StatusCode::UNAUTHORIZED, says));
        }
        if self.for_this_box && !names_this_box(request) {
            self.metrics.reject("console", "foreign_host");
            let says = "without a token the console answers on this machine alone: ask for it as localhost or 127.0.0.1, \
                        or name a [console] token_file\n";
            return Some(Page::text(StatusCode::FORBIDDEN, says));
        }
        None
    }
}

/// Whether the client asked for a loopback name or address. A page of the web can make its own name resolve to loopback
/// and read the answers, but its browser tells the name. Who names nothing is no browser.
fn names_this_box(request: &Request<Incoming>) -> bool {
    let is_loopback = |authority: Authority| {
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let mut hosts = request.headers().get_all(HOST).iter();
    hosts.all(|host| Authority::try_from(host.as_bytes()).is_ok_and(is_loopback))
        && request.uri().authority().is_none_or(|authority| is_loopback(authority.clone()))
}

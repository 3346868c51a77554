//! The uplink's HTTP client: HTTP/1.1 with kept connections over hyper and rustls, everything bounded.
//!
//! Kinesis, the credential sources and other gateways are asked through it. It tries once: whether to try again is decided
//! by who knows what a repeated request means. Only a request that never left is sent again on a fresh connection.

mod duplex;

pub use duplex::{Answering, Duplex};

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;

/// Idle connections kept to one place.
const IDLE_MAX: usize = 16;
/// Idle connections are dropped after so long: before load balancers do, which usually close after 60 s.
const IDLE_FOR: Duration = Duration::from_secs(20);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Names looked up at once, of all sinks. Where nothing answers a lookup takes half a minute, on a thread that the readers of
/// the disk need too.
static LOOKUPS: Semaphore = Semaphore::const_new(2);

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("{0} is not an address to send to")]
    Address(String),
    #[error("cannot connect to {place}: {why}")]
    Connect { place: String, why: String },
    #[error("cannot connect to {place}: nobody listens there")]
    Absent { place: String },
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

/// What a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// From the first byte sent to the last received; connecting counts apart.
    pub within: Duration,
    pub answer_bytes_max: usize,
}

type Body = Full<Bytes>;

/// Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct HttpClient {
    inner: Arc<Inner>,
}

struct Inner {
    idle: Mutex<HashMap<Place, Vec<Kept>>>,
    /// Made at the first `https` address: reading the system's certificates takes memory that plain HTTP can spare.
    tls: Mutex<Option<Arc<rustls::ClientConfig>>>,
    trust: super::tls::Trust,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    tls: bool,
    host: String,
    port: u16,
}

struct Kept {
    connection: Connection,
    since: Instant,
}

struct Connection<B = Body> {
    sender: SendRequest<B>,
    driver: AbortHandle,
}

impl<B> Drop for Connection<B> {
    fn drop(&mut self) {
        // A request that was given up must not linger in a half-open connection.
        self.driver.abort();
    }
}

impl std::fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    pub fn new(trust: super::tls::Trust) -> Self {
        HttpClient { inner: Arc::new(Inner { idle: Mutex::default(), tls: Mutex::new(None), trust }) }
    }

    /// Sends a request with an absolute address and reads the whole answer.
    pub async fn send(&self, request: Request<Bytes>, bounds: Bounds) -> Result<Response<Bytes>, HttpError> {
        let place = Place::of(request.uri())?;
        let mut request = origin_form(request.map(Full::new), &place);
        loop {
            let (mut connection, fresh) = match self.take_idle(&place) {
                Some(connection) => (connection, false),
                None => (self.connect(&place).await?, true),
            };
            let exchange = tokio::time::timeout(bounds.within, exchange(&mut connection, request, bounds));
            match exchange.await {
                Err(_) => return Err(HttpError::Timeout(bounds.within)),
                Ok(Ok(response)) => {
                    self.keep(place, connection);
                    return Ok(response);
                }
                Ok(Err(Failed::Unsent(back))) if !fresh => request = *back,
                Ok(Err(Failed::Unsent(_))) => return Err(HttpError::Broken("closed before the request".into())),
                Ok(Err(Failed::Error(error))) => return Err(error),
            }
        }
    }

    fn take_idle(&self, place: &Place) -> Option<Connection> {
        let mut idle = self.inner.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = idle.get_mut(place)?;
        kept.retain(|kept| kept.since.elapsed() < IDLE_FOR && kept.connection.sender.is_ready());
        kept.pop().map(|kept| kept.connection)
    }

    fn keep(&self, place: Place, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.inner.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let kept = idle.entry(place).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(Kept { connection, since: Instant::now() });
        }
    }

    async fn connect<B: Sendable>(&self, place: &Place) -> Result<Connection<B>, HttpError> {
        let opened = tokio::time::timeout(CONNECT_WITHIN, self.open(place)).await;
        let at = format!("{}:{}", place.host, place.port);
        match opened {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Err(HttpError::Absent { place: at }),
            Ok(Err(error)) => Err(HttpError::Connect { place: at, why: error.to_string() }),
            Err(_) => Err(HttpError::Connect { place: at, why: format!("nothing answered within {CONNECT_WITHIN:?}") }),
        }
    }

    async fn open<B: Sendable>(&self, place: &Place) -> io::Result<Connection<B>> {
        let tcp = TcpStream::connect(&addresses(place).await?[..]).await?;
        let _ = tcp.set_nodelay(true);
        if !place.tls {
            return start(tcp).await;
        }
        let config = self.tls()?;
        let name = ServerName::try_from(place.host.clone()).map_err(io::Error::other)?;
        let shaken = TlsConnector::from(config).connect(name, tcp).await;
        start(shaken.inspect_err(|_| self.forget_certificates())?).await
    }

    /// Reads them again for the next connection: files of authorities and of our own may have been renewed.
    fn forget_certificates(&self) {
        *self.inner.tls.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
    }

    fn tls(&self) -> io::Result<Arc<rustls::ClientConfig>> {
        let mut made = self.inner.tls.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(config) = &*made {
            return Ok(config.clone());
        }
        let config = self.inner.trust.config().map_err(io::Error::other)?;
        Ok(made.insert(config).clone())
    }
}

impl Place {
    fn of(uri: &Uri) -> Result<Self, HttpError> {
        let bad = || HttpError::Address(uri.to_string());
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(bad()),
        };
        let host = uri.host().ok_or_else(bad)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Place { tls, host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }) })
    }
}

async fn addresses(place: &Place) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = place.host.parse() {
        return Ok(vec![SocketAddr::new(ip, place.port)]);
    }
    let (host, port) = (place.host.clone(), place.port);
    look_up(&LOOKUPS, move || (host.as_str(), port).to_socket_addrs().map(Iterator::collect)).await?
}

/// A lookup cannot be given up: it keeps its thread until the system has given up, and its permit as long.
async fn look_up<T: Send + 'static>(
    at_once: &'static Semaphore,
    look: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let permit = at_once.acquire().await.map_err(io::Error::other)?;
    let looking = move || {
        let _until_it_ends = permit;
        look()
    };
    tokio::task::spawn_blocking(looking).await.map_err(io::Error::other)
}

/// The path alone, and the host as a header: as HTTP/1.1 wants it.
fn origin_form<B>(mut request: Request<B>, place: &Place) -> Request<B> {
    if !request.headers().contains_key(header::HOST) {
        let authority = request.uri().authority().map_or(place.host.as_str(), |authority| authority.as_str());
        if let Ok(value) = HeaderValue::from_str(authority) {
            request.headers_mut().insert(header::HOST, value);
        }
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
    request
}

/// What may be the body of a request.
trait Sendable: hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static {}
impl<B: hyper::body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static> Sendable for B {}

async fn start<T, B>(io: T) -> io::Result<Connection<B>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Sendable,
{
    let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(io::Error::other)?;
    // What goes wrong in it is told to the request that waits.
    let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
    Ok(Connection { sender, driver })
}

enum Failed {
    Unsent(Box<Request<Body>>),
    Error(HttpError),
}

async fn exchange(
    connection: &mut Connection,
    request: Request<Body>,
    bounds: Bounds,
) -> Result<Response<Bytes>, Failed> {
    let broken = |error: hyper::Error| Failed::Error(HttpError::Broken(error.to_string()));
    let response = match connection.sender.try_send_request(request).await {
        Ok(response) => response,
        Err(mut error) => {
            return Err(match error.take_message() {
                Some(request) => Failed::Unsent(Box::new(request)),
                None => broken(error.into_error()),
            });
        }
    };
    let (parts, mut body) = response.into_parts();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > bounds.answer_bytes_max {
            return Err(Failed::Error(HttpError::TooLarge(bounds.answer_bytes_max)));
        }
        whole.extend_from_slice(&data);
    }
    Ok(Response::from_parts(parts, whole.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Where packets to the name server vanish, each try to connect left a thread behind for half a minute: the pool that
    /// reads the disk for everybody was full of them.
    #[tokio::test]
    async fn lookups_that_were_given_up_count_until_they_end() {
        static AT_ONCE: Semaphore = Semaphore::const_new(2);
        static BEGUN: AtomicUsize = AtomicUsize::new(0);
        let slow = || {
            BEGUN.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(500));
        };
        for _ in 0..10 {
            let gave_up = tokio::time::timeout(Duration::from_millis(10), look_up(&AT_ONCE, slow)).await.is_err();
            assert!(gave_up);
        }
        assert_eq!(BEGUN.load(Ordering::Relaxed), 2);
        assert_eq!(look_up(&AT_ONCE, || 7).await.unwrap(), 7, "its turn comes");
    }

    #[tokio::test]
    async fn names_and_numbers_are_found() {
        let found = async |uri: &str| addresses(&Place::of(&uri.parse().unwrap()).unwrap()).await;
        assert_eq!(found("http://[::1]:7").await.unwrap(), ["[::1]:7".parse().unwrap()]);
        assert_eq!(found("http://127.0.0.1").await.unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        assert!(found("https://localhost").await.unwrap().iter().all(|at| at.ip().is_loopback() && at.port() == 443));
    }
}

//! An HTTP server for strangers: HTTP/1.1 and HTTP/2 by prior knowledge on one plaintext port, every wait and size bounded.
//!
//! It owns sockets, connection count, deadlines and the graceful stop; what a request means is its [`Handler`]'s matter.
//! The AWS door and the console stand on it; nothing here knows of either. Between them and the socket it keeps three
//! promises: a silent or trickling client loses its own connection and nobody else's, a body is never longer than its
//! bound, and all bodies and answers in memory together stay within one [`Budget`].

mod body;
mod guest;

pub use body::{Body, Gone, Stream};
pub use guest::{Answering, Guest, Input, Wants};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};

/// Requests one HTTP/2 connection may have open.
const H2_STREAMS_MAX: u32 = 64;
/// What one HTTP/2 stream, and one connection, may send before we have read it, in bytes.
const H2_STREAM_WINDOW_BYTES: u32 = 256 << 10;
const H2_CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
/// Header list of one HTTP/2 request, and read buffer of an HTTP/1.1 connection, in bytes.
const HEADERS_BYTES_MAX: u32 = 32 << 10;
const H1_BUFFER_BYTES_MAX: usize = 128 << 10;
/// A client that takes less of its answer than this between two looks at it is not reading, in bytes.
const WRITTEN_BYTES_MIN: u64 = 16 << 10;
/// How many times its bound of a body that is too large is read and thrown away, to answer it.
const DISCARD_TIMES: usize = 4;
/// Large answers have one part in so many of the budget: who reads slowly leaves the rest to those who send.
const ANSWERS_PART: u64 = 2;
/// How long a body or an answer waits for room in the budget before its sender is told to come again.
const BUDGET_WAIT: Duration = Duration::from_secs(1);

/// What a server allows a stranger.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once; a further one is closed as soon as it is accepted.
    pub connections_max: usize,
    /// From connecting to the end of the first request's headers.
    pub head: Duration,
    /// With no request, no answer and no bytes taken.
    pub idle: Duration,
}

/// What answers the requests of a server.
pub trait Handler: Send + Sync + 'static {
    /// What it remembers of one connection.
    type Session: Send + Sync + 'static;

    fn connected(&self) -> Self::Session;
    /// A connection was turned away because too many are open.
    fn turned_away(&self);
    fn handle(
        &self,
        session: &Self::Session,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send;
}

/// A listening server. Dropping it ends its connections at once; [`Server::stop`] lets them finish.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    pub async fn start<H: Handler>(listen: SocketAddr, limits: Limits, handler: Arc<H>) -> io::Result<Server> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, limits, handler, stopped));
        Ok(Server { address, stop, accepting })
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts nothing more and lets the requests that are being answered end; cuts what is left after `bound`.
    pub async fn stop(mut self, bound: Duration) {
        let _ = self.stop.send(true);
        if timeout(bound, &mut self.accepting).await.is_err() {
            self.accepting.abort();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts until told to stop, then waits for its connections. Owns them: when it is aborted they end.
async fn accept<H: Handler>(listener: TcpListener, limits: Limits, handler: Arc<H>, stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    let builder = builder();
    let mut stop = stopped.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if connections.len() < limits.connections_max => {
                    let _ = socket.set_nodelay(true);
                    connections.spawn(serve(builder.clone(), socket, limits.clone(), handler.clone(), stopped.clone()));
                }
                Ok(_) => handler.turned_away(),
                // Out of file descriptors, most likely: the ones we have must end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
            () = told(&mut stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Returns when the server is told to stop, or is gone.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(H1_BUFFER_BYTES_MAX);
    builder
        .http2()
        .max_concurrent_streams(H2_STREAMS_MAX)
        .initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_send_buf_size(H2_STREAM_WINDOW_BYTES as usize);
    builder
}

async fn serve<H: Handler>(
    builder: auto::Builder<TokioExecutor>,
    socket: TcpStream,
    limits: Limits,
    handler: Arc<H>,
    mut stopped: watch::Receiver<bool>,
) {
    let meter = Arc::new(Meter::default());
    let session = Arc::new(handler.connected());
    let service = {
        let meter = meter.clone();
        hyper::service::service_fn(move |request| {
            let (handler, session, busy) = (handler.clone(), session.clone(), Busy::start(&meter));
            async move {
                let mut answer = handler.handle(&session, request).await;
                answer.body_mut().keep(busy);
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let io = TokioIo::new(Metered { socket, meter: meter.clone() });
    let mut connection = pin!(builder.serve_connection(io, service));
    let mut looks = tokio::time::interval((limits.head.min(limits.idle) / 4).max(Duration::from_millis(5)));
    let mut quiet = Quiet { since: Instant::now(), seen: meter.look() };
    let mut stopping = false;
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told(&mut stopped), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            now = looks.tick() => {
                let allowed = if meter.look().requests == 0 { limits.head } else { limits.idle };
                if quiet.lasts(&meter, now) > allowed {
                    return;
                }
            }
        }
    }
}

/// What a connection has done so far.
#[derive(Debug, Default)]
struct Meter {
    written: AtomicU64,
    /// Requests begun, and ended.
    begun: AtomicU64,
    ended: AtomicU64,
}

#[derive(Clone, Copy, PartialEq)]
struct Look {
    written: u64,
    requests: u64,
    busy: bool,
}

impl Meter {
    fn look(&self) -> Look {
        let ended = self.ended.load(Ordering::Relaxed);
        let begun = self.begun.load(Ordering::Relaxed);
        Look { written: self.written.load(Ordering::Relaxed), requests: begun + ended, busy: begun > ended }
    }
}

/// How long a connection has done nothing. Bytes that come in do not count: a client may trickle them for ever.
struct Quiet {
    since: Instant,
    seen: Look,
}

impl Quiet {
    fn lasts(&mut self, meter: &Meter, now: Instant) -> Duration {
        let look = meter.look();
        let reads = look.written >= self.seen.written + WRITTEN_BYTES_MIN;
        if look.busy || reads || look.requests != self.seen.requests {
            *self = Quiet { since: now, seen: look };
        }
        now.saturating_duration_since(self.since)
    }
}

#[derive(Debug)]
struct Busy(Arc<Meter>);

impl Busy {
    fn start(meter: &Arc<Meter>) -> Self {
        meter.begun.fetch_add(1, Ordering::Relaxed);
        Busy(meter.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

struct Metered {
    socket: TcpStream,
    meter: Arc<Meter>,
}

impl AsyncRead for Metered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write(cx, from);
        self.count(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write_vectored(cx, from);
        self.count(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

impl Metered {
    fn count(&self, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &done {
            self.meter.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        done
    }
}

/// Memory that all requests and answers of a server share, in KiB. A client may take its time to read an answer, so large
/// answers have a part of it alone, and whoever sends goes on.
#[derive(Clone)]
pub struct Budget {
    all: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    answers_kib: usize,
}

/// A part of a [`Budget`], given back when dropped.
#[derive(Default)]
pub struct Charge {
    all: Held,
    answer: Held,
}

/// Permits of one semaphore.
#[derive(Default)]
struct Held(Option<OwnedSemaphorePermit>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is in flight")]
pub struct OverBudget;

impl Budget {
    pub fn new(bytes: u64) -> Self {
        let kib = |bytes: u64| (bytes >> 10).clamp(1, u64::from(u32::MAX)) as usize;
        let part = |kib: usize| Arc::new(Semaphore::new(kib));
        let (all_kib, answers_kib) = (kib(bytes), kib(bytes / ANSWERS_PART));
        Budget { all: part(all_kib), answers: part(answers_kib), answers_kib }
    }

    /// Raises a charge to `bytes`, waiting a moment for room.
    pub async fn raise(&self, charge: &mut Charge, bytes: usize) -> Result<(), OverBudget> {
        charge.all.raise(&self.all, bytes).await
    }

    /// The same without waiting.
    pub fn try_raise(&self, charge: &mut Charge, bytes: usize) -> Result<(), OverBudget> {
        charge.all.try_raise(&self.all, bytes)
    }

    /// Takes room for a large answer of `bytes`, beside the memory it is charged with: the part that answers may take of
    /// it until they are sent.
    pub async fn raise_answer(&self, charge: &mut Charge, bytes: usize) -> Result<(), OverBudget> {
        charge.answer.raise(&self.answers, bytes).await
    }

    /// The same for an answer that could do with less: without waiting, and a quarter of the part stays for the answers
    /// that have nothing yet.
    pub fn try_raise_answer(&self, charge: &mut Charge, bytes: usize) -> Result<(), OverBudget> {
        let wanted = charge.answer.wanted(bytes)?.unwrap_or(0) as usize;
        if self.answers.available_permits() < wanted + self.answers_kib / 4 {
            return Err(OverBudget);
        }
        charge.answer.try_raise(&self.answers, bytes)
    }
}

impl Held {
    async fn raise(&mut self, of: &Arc<Semaphore>, bytes: usize) -> Result<(), OverBudget> {
        if let Some(wanted) = self.wanted(bytes)? {
            let more = timeout(BUDGET_WAIT, of.clone().acquire_many_owned(wanted)).await;
            self.add(more.map_err(|_| OverBudget)?.map_err(|_| OverBudget)?);
        }
        Ok(())
    }

    fn try_raise(&mut self, of: &Arc<Semaphore>, bytes: usize) -> Result<(), OverBudget> {
        if let Some(wanted) = self.wanted(bytes)? {
            self.add(of.clone().try_acquire_many_owned(wanted).map_err(|_| OverBudget)?);
        }
        Ok(())
    }

    /// What is missing to `bytes`, in KiB.
    fn wanted(&self, bytes: usize) -> Result<Option<u32>, OverBudget> {
        let wanted = bytes.div_ceil(1 << 10).saturating_sub(self.kib());
        (wanted > 0).then(|| u32::try_from(wanted).map_err(|_| OverBudget)).transpose()
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.0 {
            Some(held) => held.merge(more),
            None => self.0 = Some(more),
        }
    }

    fn kib(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn lower(&mut self, bytes: usize) {
        let over = self.kib().saturating_sub(bytes.div_ceil(1 << 10));
        if let Some(held) = &mut self.0 {
            drop(held.split(over));
        }
    }
}

impl Charge {
    /// Gives back what is over `bytes`.
    pub fn lower(&mut self, bytes: usize) {
        self.all.lower(bytes);
        self.answer.lower(bytes);
    }

    /// Bytes that hold their charge until the last of them is sent.
    pub fn hold(self, bytes: Vec<u8>) -> Bytes {
        struct Sent(Vec<u8>, #[expect(dead_code, reason = "held, not read")] Charge);
        impl AsRef<[u8]> for Sent {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        match self.all.0 {
            None => bytes.into(),
            Some(_) => Bytes::from_owner(Sent(bytes, self)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is longer than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not come in time")]
    Slow,
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    #[error("the connection broke inside the body")]
    Broken,
}

/// How a body may come in.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub within: Duration,
    /// What a byte of the body will cost in memory before the answer: itself and what is made of it.
    pub cost: usize,
}

/// Reads a body to its end within its limits; the charge stands for it until dropped.
pub async fn read_body(mut body: Incoming, limits: BodyLimits, budget: &Budget) -> Result<(Bytes, Charge), BodyError> {
    let announced = body.size_hint().lower();
    if announced > limits.bytes_max as u64 {
        return Err(too_large(body, limits).await);
    }
    let mut charge = Charge::default();
    let read = async {
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
            if all.len() + data.len() > limits.bytes_max {
                return Ok(None);
            }
            budget.raise(&mut charge, (all.len() + data.len()) * limits.cost).await?;
            if all.is_empty() {
                // The announced length is trusted no further than what a first step may take.
                all.reserve((announced as usize).min(1 << 20).max(data.len()));
            }
            all.extend_from_slice(&data);
        }
        Ok::<_, BodyError>(Some(all.freeze()))
    };
    match timeout(limits.within, read).await.map_err(|_| BodyError::Slow)?? {
        Some(bytes) => Ok((bytes, charge)),
        None => Err(too_large(body, limits).await),
    }
}

/// Takes some of what is too large off the wire first: a client that is still sending would see a broken connection
/// instead of the answer that says why.
async fn too_large(mut body: Incoming, limits: BodyLimits) -> BodyError {
    let discard = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > limits.bytes_max.saturating_mul(DISCARD_TIMES) {
                break;
            }
        }
    };
    let _ = timeout(limits.within, discard).await;
    BodyError::TooLarge(limits.bytes_max)
}

#[cfg(test)]
mod tests;

//! A stranger's connection against the server: what it may cost, and whom.

use super::*;
use http::StatusCode;
use http_body_util::Full;
use hyper_util::rt::TokioExecutor;
use std::sync::atomic::AtomicUsize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers with the length of the body; `/slow` after a while, `/large` with more than sockets buffer,
/// `/stream` with as much in pieces that are all there, `/half` with a stream that is broken off.
struct Echo {
    budget: Budget,
    turned_away: AtomicUsize,
    /// Of streams, sent or thrown away.
    pieces: Arc<AtomicUsize>,
}

struct Counted(Vec<u8>, Arc<AtomicUsize>);

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for Echo {
    type Session = ();
    fn connected(&self) {}
    fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::SeqCst);
    }
    async fn handle(&self, _: &(), request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        match head.uri.path() {
            "/slow" => tokio::time::sleep(Duration::from_millis(300)).await,
            "/stream" | "/half" => {
                let (stream, body) = Body::stream();
                let (half, pieces) = (head.uri.path() == "/half", self.pieces.clone());
                tokio::spawn(async move {
                    for _ in 0..3 {
                        stream.send(Bytes::from_owner(Counted(vec![b'x'; 8 << 20], pieces.clone()))).await.unwrap();
                    }
                    // The answer is under way by then.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    if half {
                        stream.break_off("there is no more");
                    }
                });
                return Response::new(body);
            }
            "/large" => return Response::new(vec![b'x'; 32 << 20].into()),
            _ => {}
        }
        let limits = BodyLimits { bytes_max: 1000, within: Duration::from_millis(1500), cost: 2 };
        let text = match read_body(body, limits, &self.budget).await {
            Ok((bytes, _)) => bytes.len().to_string(),
            Err(error) => error.to_string(),
        };
        Response::new(text.into())
    }
}

const SHORT: Limits = Limits { connections_max: 3, head: Duration::from_millis(200), idle: Duration::from_millis(400) };

async fn started(budget: u64) -> (Server, Arc<Echo>) {
    let echo = Arc::new(Echo { budget: Budget::new(budget), turned_away: AtomicUsize::new(0), pieces: Arc::default() });
    let server = Server::start("127.0.0.1:0".parse().unwrap(), SHORT, echo.clone()).await.unwrap();
    (server, echo)
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.local_addr()).await.unwrap()
}

/// Everything until the server closes the connection.
async fn rest(mut socket: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = timeout(Duration::from_secs(5), socket.read_to_end(&mut text)).await.expect("it is never closed");
    String::from_utf8_lossy(&text).into_owned()
}

async fn post(server: &Server, path: &str, body: &str) -> String {
    let mut socket = connect(server).await;
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).await.unwrap();
    rest(socket).await
}

#[tokio::test]
async fn a_body_is_read_to_its_bound() {
    let (server, _) = started(1 << 20).await;
    assert!(post(&server, "/", &"x".repeat(1000)).await.ends_with("\r\n\r\n1000"));
    assert!(post(&server, "/", &"x".repeat(1001)).await.ends_with("the body is longer than 1000 bytes"));
}

#[tokio::test]
async fn http_2_by_prior_knowledge_comes_in_on_the_same_port() {
    let (server, _) = started(1 << 20).await;
    let io = TokioIo::new(connect(&server).await);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://x/").body(Full::new(Bytes::from_static(b"four"))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "4");
}

#[tokio::test]
async fn silent_and_trickling_clients_lose_their_connection() {
    let (server, _) = started(1 << 20).await;
    let silent = connect(&server).await;
    assert_eq!(rest(silent).await, "");

    let mut trickling = connect(&server).await;
    let begun = Instant::now();
    // A header that never ends, a byte at a time.
    while trickling.write_all(b"P").await.is_ok() && begun.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "trickled for {:?}", begun.elapsed());

    let mut half = connect(&server).await;
    half.write_all(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    assert!(rest(half).await.ends_with("the body did not come in time"));
}

#[tokio::test]
async fn a_client_that_takes_no_answer_loses_its_connection() {
    let (server, _) = started(1 << 20).await;
    let mut deaf = connect(&server).await;
    deaf.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let taken = rest(deaf).await.len();
    assert!(taken < 32 << 20, "it got everything: {taken}");
}

#[tokio::test]
async fn one_connection_too_many_is_turned_away_and_the_others_stay() {
    let (server, echo) = started(1 << 20).await;
    let mut kept = Vec::new();
    for _ in 0..SHORT.connections_max {
        let mut socket = connect(&server).await;
        socket.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        kept.push(socket);
    }
    assert_eq!(rest(connect(&server).await).await, "");
    assert_eq!(echo.turned_away.load(Ordering::SeqCst), 1);
    kept[0].write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    kept.truncate(1);
    let answers = rest(kept.remove(0)).await;
    assert!(answers.contains("HTTP/1.1 200 OK"), "{answers}");
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_cuts_idle_connections() {
    let (server, _) = started(1 << 20).await;
    let mut idle = connect(&server).await;
    idle.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    let mut slow = connect(&server).await;
    slow.write_all(b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    server.stop(Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(2));
    assert!(rest(slow).await.starts_with("HTTP/1.1 200 OK"));
    rest(idle).await;
}

#[tokio::test]
async fn what_is_over_the_budget_is_refused_and_what_ended_gives_its_part_back() {
    let (server, _) = started(1 << 10).await;
    // 1000 bytes at twice their size do not fit into 1 KiB; 500 do, again and again.
    assert!(post(&server, "/", &"x".repeat(1000)).await.ends_with("too much is in flight"));
    for _ in 0..3 {
        assert!(post(&server, "/", &"x".repeat(500)).await.ends_with("\r\n\r\n500"));
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_leave_room_for_requests() {
    let budget = Budget::new(48 << 20);
    let (mut slow, mut other, mut request) = (Charge::default(), Charge::default(), Charge::default());
    budget.raise_answer(&mut slow, 24 << 20).await.unwrap();
    budget.raise(&mut slow, 24 << 20).await.unwrap();
    assert_eq!(budget.try_raise_answer(&mut other, 1 << 10), Err(OverBudget));
    budget.raise(&mut request, 24 << 20).await.unwrap();
    slow.lower(1 << 20);
    assert_eq!(budget.try_raise_answer(&mut other, 18 << 20), Err(OverBudget), "something is left for the next");
    budget.try_raise_answer(&mut other, 17 << 20).unwrap();
    budget.raise_answer(&mut other, 23 << 20).await.unwrap();
    budget.try_raise(&mut other, 23 << 20).unwrap();
}

#[tokio::test]
async fn bytes_hold_their_charge_until_they_are_dropped() {
    let budget = Budget::new(10 << 10);
    let mut charge = Charge::default();
    budget.raise(&mut charge, 9 << 10).await.unwrap();
    charge.lower(8 << 10);
    let held = charge.hold(vec![1, 2, 3]);
    let mut more = Charge::default();
    budget.raise(&mut more, 2 << 10).await.unwrap();
    assert_eq!(budget.raise(&mut more, 3 << 10).await, Err(OverBudget));
    drop(held);
    budget.raise(&mut more, 10 << 10).await.unwrap();
}

// Only one that has sent a request may be idle for long.
#[tokio::test]
async fn who_never_asks_has_no_more_time_than_for_a_head() {
    let echo =
        Arc::new(Echo { budget: Budget::new(1 << 20), turned_away: AtomicUsize::new(0), pieces: Arc::default() });
    let limits = Limits { idle: Duration::from_secs(60), ..SHORT };
    let server = Server::start("127.0.0.1:0".parse().unwrap(), limits, echo).await.unwrap();
    assert_eq!(rest(connect(&server).await).await, "");
    let mut asked = connect(&server).await;
    asked.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    asked.write_all(b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nfour").await.unwrap();
    assert!(rest(asked).await.ends_with("\r\n\r\n4"));
}

/// The fault: a stream whose filler had given its client up kept the connection busy, and its last pieces, for as long as the
/// client liked.
#[tokio::test]
async fn a_client_that_takes_no_stream_loses_its_connection() {
    let (server, echo) = started(1 << 20).await;
    let mut deaf = connect(&server).await;
    deaf.write_all(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let begun = Instant::now();
    while echo.pieces.load(Ordering::SeqCst) < 3 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?} of 3 pieces are gone", echo.pieces);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_stream_that_is_broken_off_does_not_look_whole() {
    let (server, _) = started(1 << 20).await;
    let (whole, half) = (post(&server, "/stream", "").await, post(&server, "/half", "").await);
    assert!(whole.len() > 24 << 20 && whole.ends_with("\r\n0\r\n\r\n"));
    assert!(half.len() > 24 << 20 && !half.ends_with("\r\n0\r\n\r\n"));
}

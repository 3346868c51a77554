//! A link that fails: TCP passed through to a real server, until the test says otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};

/// What the link does to answers, in percent of the pieces that come back.
#[derive(Default)]
pub struct Link {
    /// Connections are closed as soon as they are accepted.
    refuse: AtomicU32,
    /// The connection is cut when an answer comes back: the request was served.
    lose_answers: AtomicU32,
    lost: AtomicU64,
    /// What goes to the server in a second, in bytes; 0: all there is.
    bytes_per_s: AtomicU64,
    cut: Notify,
    /// Pieces that went to the server.
    passed: AtomicU64,
}

pub struct Proxy {
    pub addr: SocketAddr,
    link: Arc<Link>,
    task: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let link = Arc::new(Link::default());
        let task = tokio::spawn(listen(listener, to, link.clone())).abort_handle();
        Proxy { addr, link, task }
    }

    pub fn refuse(&self, percent: u32) {
        self.link.refuse.store(percent, Ordering::Relaxed);
    }

    pub fn lose_answers(&self, percent: u32) {
        self.link.lose_answers.store(percent, Ordering::Relaxed);
    }

    /// Requests go to the server at this rate from now on.
    pub fn thin(&self, bytes_per_s: u64) {
        self.link.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Resets every connection there is, in both directions.
    pub fn cut(&self) {
        self.link.cut.notify_waiters();
    }

    /// Pieces that went to the server so far.
    pub fn passed(&self) -> u64 {
        self.link.passed.load(Ordering::Relaxed)
    }

    /// Answers lost so far.
    pub fn lost(&self) -> u64 {
        self.link.lost.load(Ordering::Relaxed)
    }
}

async fn listen(listener: TcpListener, to: SocketAddr, link: Arc<Link>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        if fastrand::u32(..100) < link.refuse.load(Ordering::Relaxed) {
            continue;
        }
        let link = link.clone();
        connections.spawn(async move {
            let Ok(server) = TcpStream::connect(to).await else { return };
            pass(client, server, &link).await;
        });
    }
}

/// Ends, and so closes both sides, when either side does or an answer is lost; with a reset when it is cut.
async fn pass(mut client: TcpStream, mut server: TcpStream, link: &Link) {
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let there = async {
        let mut piece = vec![0; 4 << 10];
        loop {
            let length = from_client.read(&mut piece).await?;
            if length == 0 {
                return Ok::<(), std::io::Error>(());
            }
            let rate = link.bytes_per_s.load(Ordering::Relaxed);
            if rate > 0 {
                tokio::time::sleep(Duration::from_secs_f64(length as f64 / rate as f64)).await;
            }
            to_server.write_all(&piece[..length]).await?;
            link.passed.fetch_add(1, Ordering::Relaxed);
        }
    };
    let back = async {
        let mut piece = vec![0; 64 << 10];
        loop {
            let length = from_server.read(&mut piece).await?;
            if length == 0 {
                return Ok::<(), std::io::Error>(());
            }
            if fastrand::u32(..100) < link.lose_answers.load(Ordering::Relaxed) {
                link.lost.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            to_client.write_all(&piece[..length]).await?;
        }
    };
    tokio::select! {
        _ = there => return,
        _ = back => return,
        () = link.cut.notified() => {}
    }
    for side in [client, server] {
        let _ = side.set_zero_linger();
    }
}

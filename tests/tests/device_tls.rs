//! The device SDK over TLS to the real gateway: whoever is not the gateway gets nothing, and nothing is lost by it.
//!
//! Each impostor stands where the device connects to, until the device has refused it twice; then the gateway takes its
//! place, and all that was recorded before is there, once and in order.

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_time::Duration as Ticks;
use headwater_device::link::Patience;
use headwater_device::outbox::{Outbox, WhenFull};
use headwater_device::ram::RamFlash;
use headwater_device::tls::rand_core::{CryptoRng, Error, RngCore};
use headwater_device::tls::{CertificateError, Credentials, Now, RX_BYTES, TX_BYTES, Tls, TlsFailure};
use headwater_device::{Column, ColumnType, Config, Device, Recorder, Transport, memory_bytes};
use headwater_device_host::{Tcp, TcpStreamIo};
use headwater_tests::certificates::Certificates;
use headwater_tests::gateway::{Gateway, Setup};
use headwater_tests::tools::{self, program};
use headwater_tests::{aws, need};
use ring::rand::{SecureRandom, SystemRandom};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const BOUND: Duration = Duration::from_secs(30);
const BATCH: usize = 512;
const RECORDS: i64 = 40;
const COLUMNS: &[Column<'static>] = &[Column::new("seq", ColumnType::Counter)];

type Failure = TlsFailure<io::ErrorKind>;

/// A device on a thread of its own, which connects to wherever it is told.
struct Node {
    recorder: &'static Recorder<CriticalSectionRawMutex, BATCH>,
    gateway: Arc<Mutex<SocketAddr>>,
    failures: Arc<Mutex<Vec<Failure>>>,
}

impl Node {
    fn start(pem: Vec<u8>, name: &'static str, gateway: SocketAddr, now: Now) -> Node {
        let gateway = Arc::new(Mutex::new(gateway));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let recorder: &'static Recorder<_, BATCH> = Box::leak(Box::new(Recorder::new()));
        let (to, seen) = (gateway.clone(), failures.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let mut memory = vec![0; pem.len()];
                let credentials = Credentials::from_pem(&pem, &mut memory).expect("credentials that can be read");
                let (mut rx, mut tx) = (vec![0; RX_BYTES], vec![0; TX_BYTES]);
                let tls = Tls::new(Switch(to), name, credentials, Random, || now, &mut rx, &mut tx);
                let mut ram = vec![0; 32 << 10];
                let flash = RamFlash::<1_024>::new(&mut ram);
                let range = flash.range();
                let outbox = Outbox::open(flash, range, WhenFull::Refuse, fastrand::u64(..)).await.ok().unwrap();
                let patience = Patience {
                    pause_min: Ticks::from_millis(20),
                    pause_max: Ticks::from_millis(100),
                    answer_within: Ticks::from_secs(2),
                    ..Patience::default()
                };
                let config =
                    Config { patience, linger: Ticks::from_millis(1), ..Config::new("pump-7", "dev/pump-7/t") };
                let mut memory = vec![0; memory_bytes(BATCH)];
                let device = Device::new(recorder, outbox, Watched(tls, seen), config, &mut memory, fastrand::u64(..));
                device.ok().unwrap().run(&mut ()).await;
            });
        });
        Node { recorder, gateway, failures }
    }

    fn record(&self, numbers: std::ops::RangeInclusive<i64>) {
        for seq in numbers {
            tools::eventually(BOUND, || self.recorder.try_reading(COLUMNS, &[seq.into()]).is_ok());
        }
    }

    fn go_to(&self, gateway: SocketAddr) {
        *self.gateway.lock().unwrap() = gateway;
    }

    fn has_seen(&self, times: usize, what: impl Fn(&Failure) -> bool) -> bool {
        tools::eventually(BOUND, || {
            self.failures.lock().unwrap().iter().filter(|failure| what(failure)).count() >= times
        })
    }

    fn is_done(&self) -> bool {
        tools::eventually(BOUND, || self.recorder.is_empty() && self.recorder.status().pending == 0)
    }
}

struct Switch(Arc<Mutex<SocketAddr>>);

impl Transport for Switch {
    type Stream<'a> = TcpStreamIo;
    type Error = io::ErrorKind;

    async fn connect(&mut self) -> Result<TcpStreamIo, io::ErrorKind> {
        let to = *self.0.lock().unwrap();
        Tcp(to).connect().await.map_err(|error| error.kind())
    }
}

/// Notes why there was no connection.
struct Watched<T>(T, Arc<Mutex<Vec<Failure>>>);

impl<T: Transport<Error = Failure>> Transport for Watched<T> {
    type Stream<'a>
        = T::Stream<'a>
    where
        Self: 'a;
    type Error = Failure;

    async fn connect(&mut self) -> Result<T::Stream<'_>, Failure> {
        let opened = self.0.connect().await;
        if let Err(why) = &opened {
            self.1.lock().unwrap().push(*why);
        }
        opened
    }
}

struct Random;

impl RngCore for Random {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_bytes(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, into: &mut [u8]) {
        SystemRandom::new().fill(into).expect("the system has random bytes");
    }

    fn try_fill_bytes(&mut self, into: &mut [u8]) -> Result<(), Error> {
        self.fill_bytes(into);
        Ok(())
    }
}

impl CryptoRng for Random {}

fn certificates() -> Option<Certificates> {
    program("openssl")?;
    let made = Certificates::new();
    made.device("pump-7", "ca");
    Some(made)
}

/// A gateway with the certificate of this name.
fn gateway(certificates: &Certificates, server: &str, client_ca: bool) -> (Gateway, SocketAddr) {
    let address = SocketAddr::from(([127, 0, 0, 1], tools::free_port()));
    let client_ca = if client_ca { format!("client_ca = {:?}\n", certificates.cert("ca")) } else { String::new() };
    let toml = format!(
        "[mqtt.tls]\nlisten = \"{address}\"\ncert = {:?}\nkey = {:?}\n{client_ca}",
        certificates.cert(server),
        certificates.key(server),
    );
    (Setup::new(&toml).start(), address)
}

fn now() -> Now {
    Now::At(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs())
}

fn kept(gateway: &Gateway) -> Vec<String> {
    let kept = aws::read_stream(gateway.api, "default");
    kept.iter().map(|got| String::from_utf8_lossy(&got.data).into_owned()).collect()
}

fn expected() -> Vec<String> {
    (1..=RECORDS).map(|seq| format!("{{\"seq\":{seq}}}")).collect()
}

/// The device refuses what stands at `impostor` as it should, and everything gets to the gateway afterwards.
fn is_refused(certificates: &Certificates, impostor: SocketAddr, name: &'static str, what: impl Fn(&Failure) -> bool) {
    let node = Node::start(certificates.device_pem("ca", Some("pump-7")), name, impostor, now());
    node.record(1..=RECORDS / 2);
    let has_seen = node.has_seen(2, what);
    assert!(has_seen, "{:?}", node.failures.lock().unwrap());
    assert_eq!(node.recorder.status().counts.connections, 0);
    let (gateway, address) = gateway(certificates, "server", true);
    node.go_to(address);
    node.record(RECORDS / 2 + 1..=RECORDS);
    assert!(node.is_done(), "{:?} {:?}", node.recorder.status(), node.failures.lock().unwrap());
    assert_eq!(kept(&gateway), expected());
}

/// Into the middle of the gateway's certificate.
const HALF_A_HANDSHAKE: usize = 600;

/// Stands between the device and `gateway`. In each of the first connections it changes one byte of what comes from
/// there and hangs up a little later: not every byte matters to the handshake.
fn flipping(gateway: SocketAddr, connections: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (turn, device) in listener.incoming().enumerate() {
            let (Ok(mut device), Ok(mut gateway)) = (device, TcpStream::connect(gateway)) else { return };
            let (mut up_from, mut up_to) = (device.try_clone().unwrap(), gateway.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = io::copy(&mut up_from, &mut up_to);
                let _ = up_to.shutdown(Shutdown::Both);
            });
            // The hello of the server, which nothing protects, fills the first hundred bytes or so.
            let at = if turn < connections { turn * 7 % HALF_A_HANDSHAKE } else { usize::MAX };
            let (mut passed, mut bytes) = (0, [0; 1_024]);
            while let Ok(read) = gateway.read(&mut bytes)
                && read > 0
            {
                if let Some(byte) = at.checked_sub(passed).and_then(|at| bytes[..read].get_mut(at)) {
                    *byte ^= 1 << (turn % 8);
                }
                passed += read;
                let is_over = turn < connections && passed >= HALF_A_HANDSHAKE;
                let pass = if is_over { read - (passed - HALF_A_HANDSHAKE) } else { read };
                if device.write_all(&bytes[..pass]).is_err() || is_over {
                    break;
                }
            }
            let _ = device.shutdown(Shutdown::Both);
        }
    });
    address
}

const NO_TOOLS: &str = "openssl is not installed";

#[test]
fn records_arrive_over_tls_by_name_by_address_with_and_without_a_certificate_of_the_device() {
    let certificates = need!(certificates(), NO_TOOLS);
    certificates.authority("middle", "ca");
    certificates.server("below", "middle", "DNS:localhost,IP:127.0.0.1", 2);
    certificates.chain("chained", &["below", "middle"]);
    for (server, name, device) in [
        ("server", "localhost", Some("pump-7")),
        ("server", "127.0.0.1", None),
        ("chained", "localhost", Some("pump-7")),
    ] {
        let (mut gateway, address) = gateway(&certificates, server, device.is_some());
        let node = Node::start(certificates.device_pem("ca", device), name, address, now());
        node.record(1..=RECORDS / 2);
        assert!(node.is_done(), "{server} {name} {:?} {:?}", node.recorder.status(), node.failures.lock().unwrap());
        gateway.kill();
        node.record(RECORDS / 2 + 1..=RECORDS);
        gateway.restart();
        assert!(node.is_done(), "{server} {name} {:?} {:?}", node.recorder.status(), node.failures.lock().unwrap());
        assert_eq!(kept(&gateway), expected());
    }
}

#[test]
fn an_impostor_with_a_certificate_that_is_no_proof_is_refused_and_nothing_is_lost() {
    let certificates = need!(certificates(), NO_TOOLS);
    let names = "DNS:localhost,IP:127.0.0.1";
    certificates.server("strange", "stranger", names, 2);
    certificates.server("other", "ca", "DNS:elsewhere.example,IP:127.0.0.2", 2);
    certificates.server("over", "ca", names, -1);
    // A device whose key was stolen makes itself an authority.
    certificates.server("made", "pump-7", names, 2);
    certificates.chain("made-chain", &["made", "pump-7"]);
    for (server, name, why) in [
        ("strange", "localhost", CertificateError::Issuer),
        ("other", "localhost", CertificateError::Name),
        ("other", "127.0.0.1", CertificateError::Name),
        ("over", "localhost", CertificateError::Expired),
        ("pump-7", "pump-7", CertificateError::Usage),
        ("made-chain", "localhost", CertificateError::Issuer),
    ] {
        let (_impostor, address) = gateway(&certificates, server, false);
        // The good gateway is for `localhost` and its address alone.
        let name = if server == "pump-7" { "localhost" } else { name };
        is_refused(&certificates, address, name, |failure| *failure == TlsFailure::Certificate(why));
    }
}

#[test]
fn a_device_that_the_gateway_does_not_know_keeps_its_records() {
    let certificates = need!(certificates(), NO_TOOLS);
    certificates.device("intruder", "stranger");
    let (gateway, address) = gateway(&certificates, "server", true);
    for device in [None, Some("intruder")] {
        let node = Node::start(certificates.device_pem("ca", device), "localhost", address, now());
        node.record(1..=RECORDS);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!((node.recorder.status().counts.connections, kept(&gateway)), (0, Vec::new()));
        assert!(node.recorder.status().pending > 0 || !node.recorder.is_empty());
    }
}

#[test]
fn garbage_silence_and_half_handshakes_end_in_another_try() {
    let certificates = need!(certificates(), NO_TOOLS);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (turn, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = vec![0; fastrand::usize(1..2_000)];
            fastrand::Rng::with_seed(turn as u64).fill(&mut bytes);
            // Every other time it looks like records, some of them empty.
            if turn % 2 == 0 && bytes.len() > 10 {
                let kind = 20 + (turn / 2 % 4) as u8;
                let length = ((bytes.len() - 5) * (turn / 8 % 2)) as u16;
                bytes[..5].copy_from_slice(&[kind, 3, 3, (length >> 8) as u8, length as u8]);
            }
            let _ = stream.write_all(&bytes);
        }
    });
    let node = Node::start(certificates.device_pem("ca", Some("pump-7")), "localhost", address, now());
    node.record(1..=RECORDS);
    assert!(node.has_seen(100, |_| true), "{:?}", node.failures.lock().unwrap());
    let (gateway, address) = gateway(&certificates, "server", true);
    node.go_to(address);
    assert!(node.is_done(), "{:?}", node.recorder.status());
    assert_eq!(kept(&gateway), expected());
}

#[test]
fn a_changed_byte_anywhere_in_the_handshake_ends_in_another_try() {
    let certificates = need!(certificates(), NO_TOOLS);
    let (gateway, address) = gateway(&certificates, "server", true);
    let connections = tools::rounds(200, 60);
    let between = flipping(address, connections);
    let node = Node::start(certificates.device_pem("ca", Some("pump-7")), "localhost", between, now());
    node.record(1..=RECORDS);
    let has_seen = node.has_seen(connections, |_| true);
    assert!(has_seen, "{} {:?}", node.failures.lock().unwrap().len(), node.recorder.status());
    assert!(node.is_done(), "{:?}", node.recorder.status());
    assert_eq!(kept(&gateway), expected());
}

//! The stand-in for the device SDK: publishes the records over plain MQTT 5 at QoS 1, a window at a time, and starts
//! again with the first unacknowledged one on every new connection. It keeps nothing over a reset but a count of
//! starts, which shows that the flash does.

use embassy_net::Stack;
use embassy_net::tcp::TcpSocket;
use embassy_time::{Duration, Timer, with_timeout};
use embedded_storage_async::nor_flash::NorFlash;
use minimq::{Buffers, ConfigBuilder, Publication, QoS, Session};

use crate::host::Arguments;
use crate::{log, net};

/// No step of a connection may take longer: not its opening, nor any one acknowledgement.
const STEP_MAX: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
const KEEP_ALIVE_S: u16 = 20;
const TCP_BUFFER_BYTES: usize = 4096;
const MQTT_BUFFER_BYTES: usize = 1024;

/// Returns when every record is acknowledged.
pub async fn run(stack: Stack<'static>, flash: &mut impl NorFlash, _seed: u64, arguments: &Arguments) {
    log!("start {} with this flash", count_start(flash).await);
    let mut acknowledged = 0;
    let mut backoff = BACKOFF_MIN;
    while acknowledged < arguments.records {
        let before = acknowledged;
        if let Err(reason) = connection(stack, arguments, &mut acknowledged).await {
            log!("{reason}; {acknowledged} of {} acknowledged", arguments.records);
            backoff = if acknowledged > before { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            Timer::after(backoff).await;
        }
    }
    log!("all {} records are acknowledged", arguments.records);
}

/// One TCP connection, from opening it to the last acknowledgement or to whatever ends it.
async fn connection(stack: Stack<'static>, arguments: &Arguments, acknowledged: &mut u32) -> Result<(), &'static str> {
    let (mut rx, mut tx) = ([0; TCP_BUFFER_BYTES], [0; TCP_BUFFER_BYTES]);
    let mut socket = net::open(stack, arguments.port, &mut rx, &mut tx).await?;
    let result = session(&mut socket, arguments, acknowledged).await;
    net::close(socket).await;
    result
}

async fn session(
    socket: &mut TcpSocket<'_>,
    arguments: &Arguments,
    acknowledged: &mut u32,
) -> Result<(), &'static str> {
    let (mut rx, mut tx) = ([0; MQTT_BUFFER_BYTES], [0; MQTT_BUFFER_BYTES]);
    let config = ConfigBuilder::new(Buffers::new(&mut rx, &mut tx)).keepalive_interval(KEEP_ALIVE_S);
    let mut session = Session::new(config.client_id(arguments.id).map_err(|_| "the device id is too long")?);
    let connected = with_timeout(STEP_MAX, session.connect(socket)).await;
    let mut mqtt = connected.map_err(|_| "no answer to CONNECT")?.map_err(|_| "CONNECT failed")?;
    log!("connected");
    while *acknowledged < arguments.records {
        let mut next = *acknowledged;
        while next < arguments.records && mqtt.can_publish(QoS::AtLeastOnce) {
            let payload = |buffer: &mut [u8]| json(buffer, next);
            let publication = Publication::new("emulated", payload).qos(QoS::AtLeastOnce);
            let published = with_timeout(STEP_MAX, mqtt.publish(publication)).await;
            published.map_err(|_| "PUBLISH is stuck")?.map_err(|_| "PUBLISH failed")?;
            next += 1;
        }
        while !mqtt.session().is_publish_quiescent() {
            let polled = with_timeout(STEP_MAX, mqtt.poll()).await;
            polled.map_err(|_| "no acknowledgement in time")?.map_err(|_| "the connection broke")?;
        }
        *acknowledged = next;
    }
    let _ = with_timeout(STEP_MAX, mqtt.disconnect()).await;
    Ok(())
}

fn json(mut buffer: &mut [u8], seq: u32) -> Result<usize, core::fmt::Error> {
    let before = buffer.len();
    append(&mut buffer, format_args!("{{\"seq\":{seq}}}"))?;
    Ok(before - buffer.len())
}

fn append(buffer: &mut &mut [u8], text: core::fmt::Arguments) -> core::fmt::Result {
    struct Space<'a, 'b>(&'a mut &'b mut [u8]);
    impl core::fmt::Write for Space<'_, '_> {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            let (head, tail) = core::mem::take(self.0).split_at_mut_checked(text.len()).ok_or(core::fmt::Error)?;
            head.copy_from_slice(text.as_bytes());
            *self.0 = tail;
            Ok(())
        }
    }
    core::fmt::write(&mut Space(buffer), text)
}

/// Counts the starts in the first page: a mark, then a word for each start, programmed from erased to zero.
async fn count_start(flash: &mut impl NorFlash) -> u32 {
    const MARK: [u8; 4] = *b"HWst";
    let mut word = [0; 4];
    let _ = flash.read(0, &mut word).await;
    if word != MARK {
        flash.erase(0, 4096).await.expect("page 0");
        flash.write(0, &MARK).await.expect("page 0");
    }
    for start in 1..1024 {
        let _ = flash.read(start * 4, &mut word).await;
        if word == [0xFF; 4] {
            flash.write(start * 4, &[0; 4]).await.expect("page 0");
            return start;
        }
    }
    1024
}

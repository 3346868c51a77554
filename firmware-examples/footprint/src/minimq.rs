//! `minimq` as a firmware engineer would use it: connects, subscribes, publishes a reading a second at QoS 1, reads what
//! comes, connects again. What is not acknowledged is in its buffer.

use embassy_futures::select::{Either, select};
use embassy_time::{Duration, Instant, Ticker};
use minimq::{ConfigBuilder, Publication, QoS, Session, TopicFilter};
use static_cell::StaticCell;

use crate::Board;

const RECEIVE_BYTES: usize = 512;
static MEMORY: StaticCell<[u8; 2048]> = StaticCell::new();

pub async fn run(mut board: Board) {
    let memory: &'static mut [u8] = MEMORY.init([0; _]);
    let Ok(config) = ConfigBuilder::from_buffer(memory, RECEIVE_BYTES) else { return };
    let Ok(config) = config.keepalive_interval(60).client_id("footprint") else { return };
    let mut session = Session::new(config);
    let mut every = Ticker::every(Duration::from_secs(1));
    loop {
        let Ok(socket) = board.connect().await else { continue };
        let Ok(mut connection) = session.connect(socket).await else { continue };
        if connection.subscribe(&[TopicFilter::new("footprint/commands")], &[]).await.is_err() {
            continue;
        }
        loop {
            match select(connection.poll(), every.next()).await {
                Either::First(Ok(Some(message))) => {
                    core::hint::black_box((message.topic(), message.payload()));
                }
                Either::First(Ok(None)) => {}
                Either::First(Err(_)) => break,
                Either::Second(()) => {
                    let reading = Instant::now().as_ticks().to_le_bytes();
                    let publication = Publication::new("footprint/readings", &reading[..]).qos(QoS::AtLeastOnce);
                    if connection.publish(publication).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

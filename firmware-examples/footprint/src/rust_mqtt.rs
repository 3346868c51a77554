//! `rust-mqtt` as a firmware engineer would use it: connects, subscribes, publishes a reading a second at QoS 1, reads
//! what comes, connects again. It keeps no message for sending it again; its buffer is for what it receives.

use core::num::NonZero;

use embassy_futures::select::{Either, select};
use embassy_net::tcp::TcpSocket;
use embassy_time::{Duration, Instant, Ticker};
use rust_mqtt::Bytes;
use rust_mqtt::buffer::BumpBuffer;
use rust_mqtt::client::Client;
use rust_mqtt::client::event::Event;
use rust_mqtt::client::options::{ConnectOptions, PublicationOptions, SubscriptionOptions, TopicReference};
use rust_mqtt::config::KeepAlive;
use rust_mqtt::types::{MqttString, TopicFilter, TopicName};
use static_cell::StaticCell;

use crate::Board;

static MEMORY: StaticCell<[u8; 512]> = StaticCell::new();

pub async fn run(mut board: Board) {
    let memory = MEMORY.init([0; _]);
    let mut every = Ticker::every(Duration::from_secs(1));
    loop {
        let Ok(socket) = board.connect().await else { continue };
        let mut buffer = BumpBuffer::new(memory);
        serve(socket, &mut buffer, &mut every).await;
    }
}

async fn serve<'b>(socket: TcpSocket<'b>, buffer: &'b mut BumpBuffer<'b>, every: &mut Ticker) -> Option<()> {
    let mut client = Client::<'_, '_, _, _, 1, 8, 8, 0, 1, 0, 0>::new(buffer);
    let options = ConnectOptions::new().clean_start().keep_alive(KeepAlive::Seconds(NonZero::new(60)?));
    client.connect(socket, &options, Some(MqttString::from_str("footprint").ok()?)).await.ok()?;
    let filter = TopicFilter::new(MqttString::from_str("footprint/commands").ok()?)?;
    client.subscribe(filter, &SubscriptionOptions::new().at_least_once()).await.ok()?;
    let topic = TopicName::new(MqttString::from_str("footprint/readings").ok()?)?;
    let publication = PublicationOptions::new(TopicReference::Name(topic)).at_least_once();
    let mut silent_s = 0;
    loop {
        // SAFETY: nothing that was received is held any more.
        unsafe { client.buffer_mut().reset() };
        match select(client.poll_header(), every.next()).await {
            Either::First(header) => match client.poll_body(header.ok()?).await.ok()? {
                Event::Publish(message) => {
                    core::hint::black_box((&message.topic, &message.message));
                }
                event => {
                    core::hint::black_box(matches!(event, Event::PublishComplete(_)));
                }
            },
            Either::Second(()) => {
                let reading = Instant::now().as_ticks().to_le_bytes();
                client.publish(&publication, Bytes::from(&reading[..])).await.ok()?;
                silent_s += 1;
                if silent_s == 30 {
                    silent_s = 0;
                    client.ping().await.ok()?;
                }
            }
        }
    }
}

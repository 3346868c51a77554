//! The radio: started once, then kept in the network by a task that owns it.

use embassy_executor::Spawner;
use embassy_net::{Config, DhcpConfig, Runner, Stack};
use embassy_time::{Duration, Timer};
use esp_hal::peripherals::WIFI;
use esp_radio::wifi::sta::StationConfig;
use esp_radio::wifi::{AuthenticationMethod, Interface, WifiController};
use headwater_example_app::{NetResources, credentials};
use static_cell::StaticCell;

const JOIN_AGAIN_FIRST: Duration = Duration::from_secs(1);
const JOIN_AGAIN_MAX: Duration = Duration::from_secs(60);

pub fn start(spawner: Spawner, radio: WIFI<'static>) -> Stack<'static> {
    let (mut controller, interfaces) =
        esp_radio::wifi::new(radio, Default::default()).expect("the radio starts with the heap that main gives it");
    let station = StationConfig::default().with_ssid(credentials::WIFI_SSID);
    let station = match credentials::WIFI_PASSWORD {
        "" => station.with_auth_method(AuthenticationMethod::None),
        password => station.with_password(password.into()),
    };
    controller
        .set_config(&esp_radio::wifi::Config::Station(station))
        .expect("app/build.rs has checked the lengths of name and password");

    static RESOURCES: StaticCell<NetResources> = StaticCell::new();
    let dhcp = Config::dhcpv4(DhcpConfig::default());
    let resources = RESOURCES.init(NetResources::new());
    let (stack, runner) = embassy_net::new(interfaces.station, dhcp, resources, crate::random());
    spawner.spawn(network(runner).expect("the task runs once"));
    spawner.spawn(stay_joined(controller).expect("the task runs once"));
    stack
}

#[embassy_executor::task]
async fn network(mut runner: Runner<'static, Interface<'static>>) -> ! {
    runner.run().await
}

#[embassy_executor::task]
async fn stay_joined(mut controller: WifiController<'static>) -> ! {
    let mut wait = JOIN_AGAIN_FIRST;
    loop {
        log::info!("joining {}", credentials::WIFI_SSID);
        match controller.connect_async().await {
            Ok(_) => {
                wait = JOIN_AGAIN_FIRST;
                match controller.wait_for_disconnect_async().await {
                    Ok(lost) => log::warn!("Wi-Fi is lost: {:?}", lost.reason),
                    Err(error) => log::warn!("Wi-Fi is lost: {error:?}"),
                }
            }
            Err(error) => log::warn!("not joined: {error:?}; next try in {} s", wait.as_secs()),
        }
        Timer::after(wait).await;
        wait = (wait * 2).min(JOIN_AGAIN_MAX);
    }
}

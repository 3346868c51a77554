//! Headwater on an ST Nucleo-H743ZI: telemetry over Ethernet, the outbox in the second bank of the internal flash;
//! with the feature `ota` firmware updates through the gateway.
//!
//! This file brings the chip up and hands its parts to the shared logic; what happens to a record is in `../app`.
//! Logs go over the debug probe (RTT), so `cargo run` shows them with nothing else connected.

#![no_std]
#![no_main]

mod flash;
#[path = "../../nucleo-h743zi-boot/src/layout.rs"]
#[allow(dead_code)] // some of it is the boot loader's
mod layout;
mod panic;
#[cfg(feature = "ota")]
mod updates;
#[path = "../../nucleo-h743zi-boot/src/words.rs"]
mod words;

use embassy_executor::Spawner;
use embassy_net::{DhcpConfig, Runner};
use embassy_stm32::adc::{Adc, AdcConfig, Averaging, Resolution, SampleTime, Temperature};
use embassy_stm32::eth::{self, Ethernet, GenericPhy, PacketQueue, Sma};
use embassy_stm32::gpio::{Level, Output, Speed};
use embassy_stm32::peripherals::{ADC3, ETH, ETH_SMA, RNG};
use embassy_stm32::rng::{self, Rng};
use embassy_stm32::{Config, bind_interrupts, rcc};
use embassy_time::Timer;
use headwater_example_app::{Board, Hardware, NetResources, Sample, Status};
use static_cell::StaticCell;

bind_interrupts!(struct Irqs {
    ETH => eth::InterruptHandler;
    FLASH => embassy_stm32::flash::InterruptHandler;
    RNG => rng::InterruptHandler<RNG>;
});

type Nic = Ethernet<'static, ETH, GenericPhy<Sma<'static, ETH_SMA>>>;

#[embassy_executor::main]
async fn main(spawner: Spawner) -> ! {
    rtt_target::rtt_init_log!();
    let p = embassy_stm32::init(clocks());
    log::info!("headwater nucleo-h743zi, device {}", headwater_example_app::credentials::DEVICE_ID);

    let mut rng = Rng::new(p.RNG, Irqs);

    static PACKETS: StaticCell<PacketQueue<4, 4>> = StaticCell::new();
    let nic = Ethernet::new(
        PACKETS.init(PacketQueue::new()),
        p.ETH,
        Irqs,
        p.PA1,  // reference clock
        p.PA7,  // carrier sense
        p.PC4,  // receive 0
        p.PC5,  // receive 1
        p.PG13, // transmit 0
        p.PB13, // transmit 1
        p.PG11, // transmit enable
        mac_address(),
        p.ETH_SMA,
        p.PA2, // management data
        p.PC1, // management clock
    );
    static RESOURCES: StaticCell<NetResources> = StaticCell::new();
    let dhcp = embassy_net::Config::dhcpv4(DhcpConfig::default());
    let (stack, runner) = embassy_net::new(nic, dhcp, RESOURCES.init(NetResources::new()), rng.next_u64());
    spawner.spawn(network(runner).expect("the task runs once"));

    let flash = flash::Chip::new(p.FLASH, Irqs);
    #[cfg(feature = "ota")]
    let (flash, outbox) = {
        let flash = updates::share(flash);
        spawner.spawn(updates::run(flash).expect("the task runs once"));
        (updates::whole(flash), layout::OUTBOX)
    };
    // The linker keeps the code in the first bank, so the outbox may have all of the second.
    #[cfg(not(feature = "ota"))]
    let outbox = layout::BANK_BYTES as u32..layout::FLASH_BYTES as u32;
    headwater_example_app::run(Board {
        stack,
        flash,
        outbox,
        seed: rng.next_u64(),
        #[cfg(feature = "tls")]
        random: random(rng),
        hardware: Nucleo {
            thermometer: Thermometer::new(p.ADC3),
            acknowledged: Output::new(p.PB0, Level::Low, Speed::Low),
            failed: Output::new(p.PB14, Level::Low, Speed::Low),
        },
    })
    .await
}

#[embassy_executor::task]
async fn network(mut runner: Runner<'static, Nic>) -> ! {
    runner.run().await
}

/// 400 MHz from the internal oscillator, which needs no solder bridge and no debug probe that lends its clock.
fn clocks() -> Config {
    use rcc::{AHBPrescaler, APBPrescaler, HSIPrescaler, Hsi48Config, Pll, PllDiv, PllMul, PllPreDiv, PllSource};

    let mut config = Config::default();
    let rcc = &mut config.rcc;
    rcc.hsi = Some(HSIPrescaler::DIV1);
    rcc.csi = true;
    rcc.hsi48 = Some(Hsi48Config::default()); // clocks the random number generator
    rcc.pll1 = Some(Pll {
        source: PllSource::HSI,
        prediv: PllPreDiv::DIV4,
        mul: PllMul::MUL50,
        fracn: None,
        divp: Some(PllDiv::DIV2),
        divq: None,
        divr: None,
    });
    rcc.pll2 = Some(Pll {
        source: PllSource::HSI,
        prediv: PllPreDiv::DIV4,
        mul: PllMul::MUL50,
        fracn: None,
        divp: Some(PllDiv::DIV8), // 100 MHz for the converter of the temperature sensor
        divq: None,
        divr: None,
    });
    rcc.sys = rcc::Sysclk::PLL1_P;
    rcc.ahb_pre = AHBPrescaler::DIV2;
    rcc.apb1_pre = APBPrescaler::DIV2;
    rcc.apb2_pre = APBPrescaler::DIV2;
    rcc.apb3_pre = APBPrescaler::DIV2;
    rcc.apb4_pre = APBPrescaler::DIV2;
    rcc.voltage_scale = rcc::VoltageScale::Scale1;
    rcc.mux.adcsel = rcc::mux::Adcsel::PLL2_P;
    config
}

/// A locally administered address made of the chip's serial number: the same in every boot, unlike its neighbour's.
fn mac_address() -> [u8; 6] {
    let uid = embassy_stm32::uid::uid();
    // FNV-1a over all twelve bytes: parts of the number are shared by a whole wafer.
    let hash = uid.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    [0x02, a, b, c, d, e]
}

/// The generator, for whoever makes keys.
#[cfg(feature = "tls")]
fn random(rng: Rng<'static, RNG>) -> fn(&mut [u8]) {
    use core::cell::RefCell;
    use embassy_sync::blocking_mutex::CriticalSectionMutex;

    static SHARED: CriticalSectionMutex<RefCell<Option<Rng<'static, RNG>>>> =
        CriticalSectionMutex::new(RefCell::new(None));
    SHARED.lock(|shared| shared.replace(Some(rng)));
    |bytes| SHARED.lock(|shared| shared.borrow_mut().as_mut().expect("it was put there").fill_bytes(bytes))
}

struct Nucleo {
    thermometer: Thermometer,
    /// LD1, green.
    acknowledged: Output<'static>,
    /// LD3, red.
    failed: Output<'static>,
}

impl Hardware for Nucleo {
    async fn sample(&mut self) -> Sample {
        Sample { temperature_milli_c: Some(self.thermometer.read_milli_c()) }
    }

    async fn status(&mut self, status: Status) {
        self.acknowledged.set_level((status == Status::Acknowledged).into());
        self.failed.set_level((status == Status::Failed).into());
    }

    async fn blink(&mut self) {
        for _ in 0..20 {
            self.acknowledged.toggle();
            self.failed.toggle();
            Timer::after_millis(100).await;
        }
    }
}

/// The sensor on the die. It reads some degrees above the room, as the die is.
struct Thermometer {
    adc: Adc<'static, ADC3>,
    channel: Temperature,
}

impl Thermometer {
    /// What the factory measured at 30 and 110 degrees with 3.3 V and 16 bits (data sheet, "Temperature sensor
    /// calibration values").
    const CALIBRATION_30_C: *const u16 = 0x1ff1_e820 as *const u16;
    const CALIBRATION_110_C: *const u16 = 0x1ff1_e840 as *const u16;

    fn new(adc: embassy_stm32::Peri<'static, ADC3>) -> Self {
        let config = AdcConfig { resolution: Some(Resolution::BITS16), averaging: Some(Averaging::Samples16) };
        let adc = Adc::new_with_config(adc, config);
        let channel = adc.enable_temperature();
        Self { adc, channel }
    }

    fn read_milli_c(&mut self) -> i32 {
        // The sensor wants at least 9 us of sampling; 810 cycles of 50 MHz are 16.
        let raw = i32::from(self.adc.blocking_read(&mut self.channel, SampleTime::CYCLES810_5));
        // SAFETY: both addresses lie in the chip's read-only system memory and are aligned.
        let (low, high) = unsafe { (Self::CALIBRATION_30_C.read(), Self::CALIBRATION_110_C.read()) };
        let (low, high) = (i32::from(low), i32::from(high));
        if high <= low {
            return 0; // an uncalibrated engineering sample
        }
        30_000 + (raw - low) * (80_000 / 16) / (high - low) * 16
    }
}

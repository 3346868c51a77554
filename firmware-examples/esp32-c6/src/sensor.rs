//! The chip's own thermometer, and what it does between two records.

use embassy_time::{Duration, Timer};
use esp_hal::peripherals::{LPWR, TSENS};
use esp_hal::rtc_cntl::Rtc;
use esp_hal::tsens::{Config, TemperatureSensor};
use headwater_example_app::{Hardware, Mode, Sample};

/// 2020-01-01: before that, nobody has set the clock.
const CLOCK_SET_FROM_US: u64 = 1_577_836_800_000_000;

pub struct Sensor {
    thermometer: Option<TemperatureSensor<'static>>,
    /// Goes on while the chip sleeps.
    clock: Rtc<'static>,
}

impl Sensor {
    pub fn new(thermometer: TSENS<'static>, low_power: LPWR<'static>) -> Self {
        Self { thermometer: TemperatureSensor::new(thermometer, Config::default()).ok(), clock: Rtc::new(low_power) }
    }
}

impl Hardware for Sensor {
    async fn sample(&mut self) -> Sample {
        let Some(thermometer) = &self.thermometer else {
            return Sample::default();
        };
        // Off in between; it wants some hundred microseconds to settle.
        thermometer.power_up();
        Timer::after_millis(1).await;
        let celsius = thermometer.get_temperature().to_celsius();
        thermometer.power_down();
        Sample { temperature_milli_c: Some((celsius * 1000.0) as i32) }
    }

    fn mode(&self, _interval: Duration) -> Mode {
        if cfg!(feature = "deep-sleep") { Mode::SendThenSleep } else { Mode::Connected }
    }

    fn clock(&mut self) -> Option<u64> {
        Some(self.clock.current_time_us()).filter(|us| *us >= CLOCK_SET_FROM_US).map(|us| us / 1000)
    }

    fn set_clock(&mut self, unix_ms: u64) {
        self.clock.set_current_time_us(unix_ms.saturating_mul(1000));
    }

    #[cfg(feature = "deep-sleep")]
    async fn sleep(&mut self, duration: Duration) {
        use esp_hal::rtc_cntl::sleep::TimerWakeupSource;

        log::info!("deep sleep for {} s", duration.as_secs());
        Timer::after_millis(20).await; // lets the last line out
        self.clock.sleep_deep(&[&TimerWakeupSource::new(core::time::Duration::from_millis(duration.as_millis()))])
    }
}

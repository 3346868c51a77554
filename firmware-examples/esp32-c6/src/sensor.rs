//! The chip's own thermometer, and what it does between two records.

use embassy_time::{Duration, Timer};
use esp_hal::peripherals::{LPWR, TSENS};
use esp_hal::rtc_cntl::Rtc;
use esp_hal::tsens::{Config, TemperatureSensor};
use headwater_example_app::{Hardware, Sample};

pub struct Sensor {
    thermometer: Option<TemperatureSensor<'static>>,
    #[cfg_attr(not(feature = "deep-sleep"), allow(dead_code))]
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

    #[cfg(feature = "deep-sleep")]
    async fn sleep(&mut self, duration: Duration) {
        use esp_hal::rtc_cntl::sleep::TimerWakeupSource;

        log::info!("deep sleep for {} s", duration.as_secs());
        Timer::after_millis(20).await; // lets the last line out
        self.clock.sleep_deep(&[&TimerWakeupSource::new(core::time::Duration::from_millis(duration.as_millis()))])
    }

    #[cfg(not(feature = "deep-sleep"))]
    async fn sleep(&mut self, duration: Duration) {
        Timer::after(duration).await;
    }
}

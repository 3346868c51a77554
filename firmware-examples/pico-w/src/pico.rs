//! The board's sensor, light and sleep, as the shared logic wants them.

use embassy_rp::Peri;
use embassy_rp::adc::{Adc, Blocking, Channel, Config};
use embassy_rp::peripherals::{ADC, ADC_TEMP_SENSOR};
use embassy_time::{Duration, Timer};
use headwater_example_app::{Hardware, Mode, Sample, Status};

use crate::radio;

/// From here on it costs less to leave the network and to join again than to hear every beacon.
const LEAVE_FROM: Duration = Duration::from_secs(120);

pub struct Pico {
    adc: Adc<'static, Blocking>,
    thermometer: Channel<'static>,
}

impl Pico {
    pub fn new(adc: Peri<'static, ADC>, sensor: Peri<'static, ADC_TEMP_SENSOR>) -> Self {
        Self { adc: Adc::new_blocking(adc, Config::default()), thermometer: Channel::new_temp_sensor(sensor) }
    }
}

impl Hardware for Pico {
    async fn sample(&mut self) -> Sample {
        // One conversion takes 2 us, and sixteen of them take the worst noise out.
        let mut sum = 0;
        for _ in 0..16 {
            match self.adc.blocking_read(&mut self.thermometer) {
                Ok(raw) => sum += i32::from(raw),
                Err(_) => return Sample::default(),
            }
        }
        // The data sheet's line: 27 degrees at 0.706 V, -1.721 mV a degree; 3.3 V are 4096 steps.
        let microvolts = (i64::from(sum) * 3_300_000 / (16 * 4096)) as i32;
        Sample { temperature_milli_c: Some(27_000 - (microvolts - 706_000) * 1000 / 1721) }
    }

    async fn status(&mut self, status: Status) {
        radio::light(status == Status::Acknowledged);
    }

    async fn blink(&mut self) {
        for on in [true, false].into_iter().cycle().take(20) {
            radio::light(on);
            Timer::after_millis(100).await;
        }
    }

    fn mode(&self, interval: Duration) -> Mode {
        if interval < LEAVE_FROM { Mode::Connected } else { Mode::SendThenSleep }
    }

    async fn sleep(&mut self, duration: Duration) {
        radio::leave_for(duration);
        // The executor lets the core wait for an event; README.md says what that saves and what it does not.
        Timer::after(duration).await;
    }
}

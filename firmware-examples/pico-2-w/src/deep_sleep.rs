//! Sleep with the processor, its RAM and the radio without power: the RP2350's always-on timer alone goes on, and brings the
//! chip back through a reset. What the gateway does not have yet is in flash by then, and the timer keeps the time of day.
//!
//! embassy-rp 0.10 has a driver for that timer, which sets its frequency anew at each start and so costs time of day, and none
//! for the powered-down states: so this goes by the registers. Sections and names are those of the RP2350's data sheet.

use embassy_rp::pac::{POWMAN, SIO};
use embassy_time::{Duration, Timer};
use headwater_example_app::{Hardware, Mode, Sample, Status};

use crate::pico::Pico;

/// In the upper half of whatever is written to POWMAN (6.4).
const PASSWORD: u32 = 0x5afe << 16;
/// The low-power oscillator: 32.768 kHz, the fraction in 1/65536 (6.4, LPOSC_FREQ_KHZ).
const LPOSC_KHZ: (u32, u32) = (32, 50_332);
/// P1.7: processor, cache and both halves of the RAM are off (6.2.2.2).
const ALL_OFF: u32 = 0b1111;
/// The pin that powers the radio.
const RADIO_POWER: usize = 23;
/// 2020-01-01: before that, nobody has set the clock.
const CLOCK_SET_FROM_MS: u64 = 1_577_836_800_000;

/// The Pico with its always-on timer.
pub struct DeepSleeper {
    pico: Pico,
}

impl DeepSleeper {
    /// Starts the timer unless it has gone on through a sleep.
    pub fn new(pico: Pico) -> Self {
        if !POWMAN.timer().read().run() {
            POWMAN.lposc_freq_khz_int().write(|w| w.0 = PASSWORD | LPOSC_KHZ.0);
            POWMAN.lposc_freq_khz_frac().write(|w| w.0 = PASSWORD | LPOSC_KHZ.1);
            set_timer(0);
        }
        DeepSleeper { pico }
    }
}

impl Hardware for DeepSleeper {
    async fn sample(&mut self) -> Sample {
        self.pico.sample().await
    }

    async fn status(&mut self, status: Status) {
        self.pico.status(status).await;
    }

    async fn blink(&mut self) {
        self.pico.blink().await;
    }

    fn mode(&self, _interval: Duration) -> Mode {
        Mode::SendThenSleep
    }

    async fn sleep(&mut self, duration: Duration) {
        log::info!("deep sleep for {} s", duration.as_secs());
        Timer::after_millis(50).await; // lets the last line out
        // Without power the pads stay as they are (9.7), the radio's switch among them.
        SIO.gpio_out(0).value_clr().write_value(1 << RADIO_POWER);
        power_down(duration);
        // The chip did not go: something holds it, a debugger or a wake that is pending. Then the next reading comes through
        // a reset all the same, as the radio is off.
        log::warn!("no deep sleep: POWMAN's state is {:#x}", POWMAN.state().read().0);
        Timer::after(duration).await;
        cortex_m::peripheral::SCB::sys_reset()
    }

    fn clock(&mut self) -> Option<u64> {
        Some(now_ms()).filter(|ms| *ms >= CLOCK_SET_FROM_MS)
    }

    fn set_clock(&mut self, unix_ms: u64) {
        set_timer(unix_ms);
    }
}

/// Does not return if the chip takes it.
fn power_down(duration: Duration) {
    let alarm = now_ms().saturating_add(duration.as_millis());
    change_timer(|w| w.set_alarm_enab(false));
    POWMAN.alarm_time_63to48().write(|w| w.0 = PASSWORD | part(alarm, 48));
    POWMAN.alarm_time_47to32().write(|w| w.0 = PASSWORD | part(alarm, 32));
    POWMAN.alarm_time_31to16().write(|w| w.0 = PASSWORD | part(alarm, 16));
    POWMAN.alarm_time_15to0().write(|w| w.0 = PASSWORD | part(alarm, 0));
    change_timer(|w| {
        w.set_alarm(true); // written as 1 it is cleared
        w.set_pwrup_on_alarm(true);
        w.set_alarm_enab(true);
    });
    // No address to go on at: the boot ROM starts the firmware as after a power-on (5.2.4).
    for word in 0..4 {
        POWMAN.boot(word).write_value(0);
    }
    // A debugger that was there once does not hold the power (6.2.4).
    POWMAN.dbg_pwrcfg().write(|w| w.0 = PASSWORD | 1);
    POWMAN.state().write(|w| w.0 = PASSWORD | ALL_OFF << 4);
    let state = POWMAN.state().read();
    if state.req_ignored() || state.bad_sw_req() || state.bad_hw_req() {
        return;
    }
    // It happens once the processor waits (6.2.3.2); what wakes it before that does not count.
    cortex_m::interrupt::disable();
    for _ in 0..1_000 {
        cortex_m::asm::wfi();
    }
    // SAFETY: they were enabled before, and nothing here relies on them being off.
    unsafe { cortex_m::interrupt::enable() };
}

fn now_ms() -> u64 {
    loop {
        let upper = POWMAN.read_time_upper().read();
        let lower = POWMAN.read_time_lower().read();
        if POWMAN.read_time_upper().read() == upper {
            return u64::from(upper) << 32 | u64::from(lower);
        }
    }
}

/// Sets the timer, which has to stand for that, and lets it run by the oscillator that stays on.
fn set_timer(ms: u64) {
    change_timer(|w| w.set_run(false));
    POWMAN.set_time_63to48().write(|w| w.0 = PASSWORD | part(ms, 48));
    POWMAN.set_time_47to32().write(|w| w.0 = PASSWORD | part(ms, 32));
    POWMAN.set_time_31to16().write(|w| w.0 = PASSWORD | part(ms, 16));
    POWMAN.set_time_15to0().write(|w| w.0 = PASSWORD | part(ms, 0));
    change_timer(|w| {
        w.set_use_lposc(true);
        w.set_run(true);
    });
}

fn change_timer(change: impl FnOnce(&mut embassy_rp::pac::powman::regs::Timer)) {
    POWMAN.timer().modify(|w| {
        w.0 = w.0 & 0xffff | PASSWORD;
        // A pending alarm is not cleared by the way.
        w.set_alarm(false);
        change(w);
    });
}

/// Sixteen bits of a time.
fn part(ms: u64, shift: u32) -> u32 {
    (ms >> shift) as u32 & 0xffff
}

//! What the terminal shows while the demo runs: a few lines that are redrawn, or plain lines where it is no terminal.

use crate::cli::output::Output;
use anyhow::Result;
use std::collections::VecDeque;
use std::time::Duration;

const HISTORY: usize = 48;
/// How often plain lines come.
const PLAIN_EVERY: Duration = Duration::from_secs(2);
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One moment of the demo.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    pub elapsed: Duration,
    pub devices: u64,
    pub connected: u64,
    pub sent: u64,
    pub acked: u64,
    pub upstream: u64,
    pub hurt: u64,
    pub reconnects: u64,
    pub phase: &'static str,
    /// The gateway's process, while it runs.
    pub gateway: Option<u32>,
}

pub struct Display<'o> {
    out: &'o Output,
    live: bool,
    drawn: usize,
    last: Moment,
    backlog: VecDeque<u64>,
    plain_at: Duration,
}

impl<'o> Display<'o> {
    pub fn new(out: &'o Output) -> Self {
        let live = out.is_live();
        Display {
            out,
            live,
            drawn: 0,
            last: Moment::default(),
            backlog: VecDeque::with_capacity(HISTORY),
            plain_at: Duration::ZERO,
        }
    }

    pub fn show(&mut self, now: Moment) -> Result<()> {
        if self.out.json {
            return Ok(());
        }
        let backlog = now.acked.saturating_sub(now.upstream);
        if self.backlog.len() == HISTORY {
            self.backlog.pop_front();
        }
        self.backlog.push_back(backlog);
        let since = now.elapsed.saturating_sub(self.last.elapsed).as_secs_f64();
        let rate = if since > 0.0 { (now.sent.saturating_sub(self.last.sent)) as f64 / since } else { 0.0 };
        if self.live {
            self.draw(&now, backlog, rate)?;
        } else if now.phase != self.last.phase || now.elapsed >= self.plain_at {
            self.plain_at = now.elapsed + PLAIN_EVERY;
            let Moment { connected, devices, acked, upstream, .. } = now;
            self.out.line(&format!(
                "{:5.1} s  {connected}/{devices} devices  acked {acked}  upstream {upstream}  backlog {backlog}  {}",
                now.elapsed.as_secs_f64(),
                now.phase
            ))?;
        }
        self.last = now;
        Ok(())
    }

    fn draw(&mut self, now: &Moment, backlog: u64, rate: f64) -> Result<()> {
        let (bold, dim, plain) = if self.out.colours() { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
        let gateway = now.gateway.map_or_else(|| "killed, starting again".to_owned(), |pid| format!("pid {pid}"));
        let Moment { connected, devices, acked, upstream, hurt, reconnects, .. } = now;
        let lines = [
            format!("{bold}Headwater demo{plain}  {:5.1} s  {bold}{}{plain}", now.elapsed.as_secs_f64(), now.phase),
            format!("  devices   {connected:>4} of {devices} connected   {rate:>6.0} msg/s   {reconnects} reconnects"),
            format!("  gateway   {acked:>8} acknowledged after fsync   {dim}{gateway}{plain}"),
            format!("  backlog   {backlog:>8} {}", self.sparks()),
            format!("  upstream  {upstream:>8} stored   {hurt} calls hurt by the link"),
        ];
        if self.drawn > 0 {
            // Up to the first line; each line clears what stood there.
            print!("\x1b[{}A", self.drawn);
        }
        self.drawn = lines.len();
        for line in lines {
            self.out.line(&format!("\r\x1b[2K{line}"))?;
        }
        Ok(())
    }

    fn sparks(&self) -> String {
        let most = self.backlog.iter().copied().max().unwrap_or(0).max(1);
        let bar = |value: &u64| BARS[(value * (BARS.len() as u64 - 1)).div_ceil(most) as usize % BARS.len()];
        self.backlog.iter().map(bar).collect()
    }
}

//! When to connect, when to send, when to give up: the connection's state machine (pure).
//!
//! Inputs say what happened, [`Link::poll`] says what to do now, [`Link::next_wake`] when to ask again at the latest. It
//! knows nothing of sockets, flash or MQTT; the [driver](crate::Device) does what it says.

use embassy_time::{Duration, Instant};

/// Publishes that may be on their way at once: as many as the MQTT core keeps.
pub const IN_FLIGHT_MAX: usize = 8;

/// How patient a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// The longest first pause after a failure; it doubles with each one that follows. The pause is random below that
    /// (full jitter), so that a fleet that lost its gateway does not come back all at once.
    pub pause_min: Duration,
    /// The longest pause.
    pub pause_max: Duration,
    /// Connecting, and each answer of the gateway, have to come within this.
    pub answer_within: Duration,
    /// How long the gateway's hello is waited for. A broker that is not a gateway says none.
    pub hello_within: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            pause_min: Duration::from_millis(500),
            pause_max: Duration::from_secs(60),
            answer_within: Duration::from_secs(15),
            hello_within: Duration::from_secs(3),
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Open a connection; then [`Link::opened`] or [`Link::lost`].
    Connect,
    /// Send the next frame if there is one: [`Link::sent`].
    Send,
    /// Everything on its way was answered, and some of it refused: start again at the oldest, [`Link::rewound`].
    Rewind,
    /// The connection is dead, whatever the transport thinks: drop it, then [`Link::lost`].
    Drop,
    /// Nothing, until something happens or [`Link::next_wake`].
    Wait,
}

/// A frame on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The epoch of its numbers.
    pub epoch: u32,
    /// The number of its last record.
    pub last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offline { until: Instant },
    Connecting { until: Instant },
    Greeting { until: Instant },
    Online,
}

/// The state of one device's connection.
#[derive(Clone, Debug)]
pub struct Link {
    patience: Patience,
    state: State,
    failures: u32,
    random: u64,
    in_flight: [Sent; IN_FLIGHT_MAX],
    count: usize,
    window: usize,
    /// When the oldest on its way was sent, or the last answer came.
    heard: Instant,
    /// Something was refused: nothing is sent until all is answered, and then not before this.
    hold: Option<Instant>,
    refusals: u32,
}

impl Link {
    /// A link that connects at once. `seed` is random; `window` frames at most are on their way, up to [`IN_FLIGHT_MAX`].
    pub fn new(patience: Patience, window: usize, seed: u64, now: Instant) -> Self {
        Link {
            patience,
            state: State::Offline { until: now },
            failures: 0,
            random: seed | 1,
            in_flight: [Sent { epoch: 0, last: 0 }; IN_FLIGHT_MAX],
            count: 0,
            window: window.clamp(1, IN_FLIGHT_MAX),
            heard: now,
            hold: None,
            refusals: 0,
        }
    }

    /// What to do now.
    pub fn poll(&self, now: Instant) -> Step {
        match self.state {
            State::Offline { until } if now >= until => Step::Connect,
            State::Offline { .. } => Step::Wait,
            State::Connecting { until } if now >= until => Step::Drop,
            State::Connecting { .. } | State::Greeting { .. } => Step::Wait,
            State::Online if self.count > 0 && now >= self.heard + self.patience.answer_within => Step::Drop,
            State::Online => match self.hold {
                Some(_) if self.count > 0 => Step::Wait,
                Some(until) if now >= until => Step::Rewind,
                Some(_) => Step::Wait,
                None if self.count < self.window => Step::Send,
                None => Step::Wait,
            },
        }
    }

    /// When [`Link::poll`] says something else, if nothing happens before.
    pub fn next_wake(&self) -> Option<Instant> {
        match self.state {
            State::Offline { until } | State::Connecting { until } | State::Greeting { until } => Some(until),
            State::Online if self.count > 0 => Some(self.heard + self.patience.answer_within),
            State::Online => self.hold,
        }
    }

    /// A connection is being opened.
    pub fn connecting(&mut self, now: Instant) {
        self.state = State::Connecting { until: now + self.patience.answer_within };
    }

    /// The gateway has taken the connection; its hello is asked for.
    pub fn opened(&mut self, now: Instant) {
        self.state = State::Greeting { until: now + self.patience.hello_within };
    }

    /// The hello has come.
    pub fn greeted(&mut self) {
        if let State::Greeting { .. } = self.state {
            self.state = State::Online;
        }
    }

    /// Goes on without a hello once it is waited for long enough; whether that was now.
    pub fn not_greeted(&mut self, now: Instant) -> bool {
        let is_late = matches!(self.state, State::Greeting { until } if now >= until);
        if is_late {
            self.state = State::Online;
        }
        is_late
    }

    /// The connection is gone, or could not be made.
    pub fn lost(&mut self, now: Instant) {
        let ceiling = self.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Offline { until: now + self.jitter(ceiling) };
        (self.count, self.hold) = (0, None);
    }

    /// The connection was ended because there is nothing to do.
    pub fn rested(&mut self, now: Instant) {
        self.state = State::Offline { until: now };
        (self.count, self.hold) = (0, None);
    }

    /// Whether there is a connection over which frames go.
    pub fn is_online(&self) -> bool {
        self.state == State::Online
    }

    /// Whether a connection is there or being made.
    pub fn is_connected(&self) -> bool {
        matches!(self.state, State::Online | State::Greeting { .. })
    }

    /// Whether there is no connection and none is being made.
    pub fn is_offline(&self) -> bool {
        matches!(self.state, State::Offline { .. })
    }

    /// Frames on their way.
    pub fn in_flight(&self) -> usize {
        self.count
    }

    /// Whether a frame of this epoch may go now: never before all of another epoch was answered, or the gateway could take
    /// a frame that is sent again for one of a new life.
    pub fn takes_epoch(&self, epoch: u32) -> bool {
        self.count == 0 || self.in_flight.first().is_some_and(|sent| sent.epoch == epoch)
    }

    /// A frame went out.
    pub fn sent(&mut self, now: Instant, frame: Sent) {
        if self.count == 0 {
            self.heard = now;
        }
        if let Some(place) = self.in_flight.get_mut(self.count) {
            *place = frame;
            self.count += 1;
        }
    }

    /// The gateway has the oldest frame on its disk: up to which number the outbox may forget, unless one before it was
    /// refused.
    pub fn acked(&mut self, now: Instant) -> Option<Sent> {
        let frame = self.answered(now)?;
        if self.hold.is_some() {
            return None;
        }
        (self.failures, self.refusals) = (0, 0);
        Some(frame)
    }

    /// The gateway does not take the oldest frame now.
    pub fn refused(&mut self, now: Instant) -> Option<Sent> {
        let frame = self.answered(now)?;
        if self.hold.is_none() {
            let ceiling = self.pause(self.refusals);
            self.refusals = self.refusals.saturating_add(1);
            self.hold = Some(now + self.jitter(ceiling));
        }
        Some(frame)
    }

    /// The outbox begins again at the oldest frame.
    pub fn rewound(&mut self) {
        self.hold = None;
    }

    fn answered(&mut self, now: Instant) -> Option<Sent> {
        if self.count == 0 {
            return None;
        }
        let frame = self.in_flight.first().copied();
        self.in_flight.rotate_left(1);
        self.count -= 1;
        self.heard = now;
        frame
    }

    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.patience.pause_min.as_ticks().saturating_mul(1 << failures.min(20));
        Duration::from_ticks(doubled.min(self.patience.pause_max.as_ticks()))
    }

    /// Anything up to the ceiling (xorshift).
    fn jitter(&mut self, ceiling: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        Duration::from_ticks(self.random.checked_rem(ceiling.as_ticks().saturating_add(1)).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn online(window: usize) -> Link {
        let mut link = Link::new(Patience::default(), window, 7, at(0));
        assert_eq!(link.poll(at(0)), Step::Connect);
        link.connecting(at(0));
        assert_eq!((link.poll(at(1)), link.poll(at(15_000))), (Step::Wait, Step::Drop));
        link.opened(at(1));
        assert_eq!((link.poll(at(2)), link.next_wake()), (Step::Wait, Some(at(3_001))));
        link.greeted();
        link
    }

    fn frame(last: u64) -> Sent {
        Sent { epoch: 1, last }
    }

    #[test]
    fn frames_are_answered_in_order_and_the_window_is_held() {
        let mut link = online(2);
        assert_eq!(link.poll(at(5)), Step::Send);
        link.sent(at(5), frame(10));
        link.sent(at(6), frame(20));
        assert_eq!(link.poll(at(7)), Step::Wait);
        assert_eq!(link.acked(at(9)), Some(frame(10)));
        assert_eq!((link.poll(at(9)), link.in_flight()), (Step::Send, 1));
        assert!(link.takes_epoch(1) && !link.takes_epoch(2));
        assert_eq!(link.acked(at(9)), Some(frame(20)));
        assert!(link.takes_epoch(2));
        assert_eq!(link.acked(at(9)), None);
    }

    #[test]
    fn a_gateway_that_says_nothing_is_given_up() {
        let mut link = online(1);
        link.sent(at(100), frame(1));
        assert_eq!(link.poll(at(15_099)), Step::Wait);
        assert_eq!(link.poll(at(15_100)), Step::Drop);
        link.lost(at(15_100));
        assert_eq!(link.in_flight(), 0);
    }

    #[test]
    fn pauses_double_with_full_jitter_and_an_answer_ends_them() {
        let mut link = online(4);
        let mut longest = 0;
        for turn in 0..200u64 {
            let now = at(1_000_000 * turn);
            link.lost(now);
            let pause = link.next_wake().unwrap() - now;
            let ceiling = Duration::from_millis(500 << turn.min(8)).min(Duration::from_secs(60));
            assert!(pause <= ceiling, "{turn}: {pause:?}");
            longest = longest.max(pause.as_millis());
            assert_eq!(link.poll(now + pause), Step::Connect);
        }
        assert!(longest > 50_000, "{longest}");
        link.opened(at(1));
        link.greeted();
        link.sent(at(1), frame(1));
        link.acked(at(1));
        link.lost(at(10));
        assert!(link.next_wake().unwrap() <= at(510));
    }

    #[test]
    fn after_a_refusal_all_is_answered_first_and_then_sent_again_from_the_oldest() {
        let mut link = online(4);
        (1..=3).for_each(|n| link.sent(at(1), frame(n)));
        assert_eq!(link.acked(at(2)), Some(frame(1)));
        assert_eq!(link.refused(at(2)), Some(frame(2)));
        assert_eq!(link.poll(at(2)), Step::Wait);
        assert_eq!(link.acked(at(3)), None, "what comes behind a refused one is not released");
        let until = link.next_wake().unwrap();
        assert!(until <= at(502));
        assert_eq!(link.poll(until), Step::Rewind);
        link.rewound();
        assert_eq!(link.poll(until), Step::Send);
    }

    #[test]
    fn without_a_hello_it_goes_on_after_a_while() {
        let mut link = Link::new(Patience::default(), 4, 7, at(0));
        link.opened(at(0));
        assert!(!link.not_greeted(at(2_999)));
        assert!(link.not_greeted(at(3_000)) && link.is_online());
        assert!(!link.not_greeted(at(3_000)));
    }
}

//! The seeded crash and fault simulation: the real log on a simulated disk, judged by what it acknowledged.
//!
//! A seed decides everything: operations, sizes, faults, and what a power cut keeps. A failure prints the seed and the
//! steps; `HEADWATER_SIM_SEED=n` runs that one alone. The log is stepped, so that a seed replays exactly.

mod device;
mod operation;
mod oracle;
mod stepped;
mod world;

use fastrand::Rng;
use operation::{Operation, Profile};
use std::collections::VecDeque;
use stepped::Sabotage;
use world::World;

const SEEDS: u64 = 200;
/// Operations shown with a failure.
const SHOWN: usize = 24;

#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    acknowledged: u64,
    reopens: u32,
}

/// Runs one seed; an error says what was broken and how to get there.
fn run(seed: u64, sabotage: Sabotage) -> Result<Outcome, String> {
    let mut rng = Rng::with_seed(seed);
    let profile = Profile::of(seed, &mut rng);
    let mut world = World::new(seed, profile, sabotage);
    let mut last: VecDeque<Operation> = VecDeque::new();
    for step in 0..profile.steps {
        let operation = Operation::draw(&profile, &mut rng);
        if last.len() == SHOWN {
            last.pop_front();
        }
        last.push_back(operation);
        world.apply(operation).map_err(|says| format!("seed {seed} step {step}: {says}\nlast operations: {last:#?}"))?;
    }
    world.apply(Operation::Crash { again_after: None }).map_err(|says| format!("seed {seed}, last crash: {says}"))?;
    Ok(Outcome { trace: world.sim.trace(), acknowledged: world.oracle.acknowledged, reopens: world.reopens })
}

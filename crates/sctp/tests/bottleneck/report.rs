//! The scenarios for humans: a table of all, or single runs.
//!
//! ```text
//! cargo test -p anabranch-sctp --release --test bottleneck -- --ignored table --nocapture
//! BOTTLENECK_SCENARIO=cubic-1bdp BOTTLENECK_CONTENDER=ours BOTTLENECK_SEEDS=1,2 BOTTLENECK_TRACE=1
//!     cargo test -p anabranch-sctp --release --test bottleneck -- --ignored single --nocapture
//! ```

use super::flow::Contender;
use super::models;
use super::scenarios::{NONE, Outcome, SCENARIOS, Scenario};

/// Names in a variable, separated by commas.
fn variable(name: &str) -> Option<Vec<String>> {
    let value = std::env::var(name).ok()?;
    Some(value.split(',').map(str::to_owned).collect())
}

fn contenders() -> Vec<Contender> {
    let names = variable("BOTTLENECK_CONTENDER");
    let is_chosen = |contender: &Contender| {
        (names.as_ref()).is_none_or(|names| names.iter().any(|name| name == contender.name))
    };
    models::ALL.into_iter().filter(is_chosen).collect()
}

fn scenarios() -> Vec<&'static Scenario> {
    let names = variable("BOTTLENECK_SCENARIO");
    let is_chosen = |scenario: &&Scenario| {
        (names.as_ref()).is_none_or(|names| names.iter().any(|name| name == scenario.name))
    };
    SCENARIOS.iter().filter(is_chosen).collect()
}

fn seeds() -> Vec<u64> {
    let seeds =
        variable("BOTTLENECK_SEEDS").unwrap_or_else(|| vec!["1".into(), "2".into(), "3".into()]);
    seeds.iter().map(|seed| seed.parse().unwrap()).collect()
}

/// Runs a scenario. A panic is an outcome: it must not cost the rest of the table.
fn run(scenario: &Scenario, contender: Contender, seed: u64) -> Outcome {
    let outcome = std::panic::catch_unwind(|| (scenario.run)(contender, seed));
    outcome.unwrap_or_else(|_| Outcome {
        holds: false,
        figures: "panicked".to_owned(),
    })
}

#[test]
#[ignore = "prints a table"]
fn table() {
    let contenders = contenders();
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name).collect();
    println!("| scenario (bar) | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    let scenarios = scenarios();
    let mut held = vec![0; contenders.len()];
    for scenario in &scenarios {
        let is_judged = scenario.bar != NONE;
        let mut row = format!("| {} ({}) |", scenario.name, scenario.bar);
        for (contender, held) in contenders.iter().zip(&mut held) {
            let outcomes = seeds()
                .into_iter()
                .map(|seed| run(scenario, *contender, seed));
            let outcomes: Vec<_> = outcomes.collect();
            *held += usize::from(is_judged && outcomes.iter().all(|outcome| outcome.holds));
            let figures = outcomes.iter().map(|outcome| {
                let mark = if outcome.holds { "" } else { "**" };
                format!("{mark}{}{mark}", outcome.figures)
            });
            let figures: Vec<String> = figures.collect();
            row += &format!(" {} |", figures.join("; "));
        }
        println!("{row}");
    }
    let held: Vec<String> = held.iter().map(usize::to_string).collect();
    let judged = scenarios.iter().filter(|scenario| scenario.bar != NONE);
    println!("| hold, of {} | {} |", judged.count(), held.join(" | "));
}

#[test]
#[ignore = "prints single runs"]
fn single() {
    for scenario in scenarios() {
        for contender in contenders() {
            for seed in seeds() {
                let outcome = run(scenario, contender, seed);
                let Scenario { name, bar, .. } = scenario;
                let mark = if outcome.holds {
                    "holds"
                } else {
                    "FALLS SHORT"
                };
                println!(
                    "{mark} {name} ({bar}) {} seed {seed}: {}",
                    contender.name, outcome.figures
                );
            }
        }
    }
}

//! Agent and receiver killed under load. Many more rounds: `cargo run --release -p tests --bin kill-rounds`.

use tests::real::kill_rounds;

#[test]
fn kills_in_async_mode_leave_a_prefix() {
    println!("{}", kill_rounds(4, 1, false).unwrap());
}

#[test]
fn kills_in_sync_mode_lose_nothing() {
    for seed in [1, 2] {
        println!("{}", kill_rounds(4, seed, true).unwrap());
    }
}

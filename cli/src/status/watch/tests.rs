use afterimage_contract::config::Mode;
use afterimage_contract::status::{
    ApplyLag, CatchUp, Daemon, GroupStatus, Lag, PeerStatus, Protection, Role, Status, Warning,
};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::draw::draw;
use super::view::{Next, View};
use crate::text::Paint;

const START_US: u64 = 1_790_000_000_000_000;

fn group(name: &str, role: Role, protection: Protection) -> GroupStatus {
    let peer =
        PeerStatus { name: "beta".into(), connected: true, rtt_us: Some(1_234), ..PeerStatus::default() };
    let mut group = GroupStatus::new(name, role, Mode::Sync, protection, peer);
    group.since_us = Some(START_US - 75_000_000);
    group
}

/// A status that both daemons made, so many seconds after the first.
fn status(second: u64, groups: Vec<GroupStatus>) -> Status {
    let daemon = || Some(Daemon { release: "0.1.0".into(), since_us: None });
    let mut status = Status::new("alpha", START_US + second * 1_000_000);
    (status.agent, status.receiver, status.groups) = (daemon(), daemon(), groups);
    status
}

fn silent(second: u64) -> Status {
    let mut status = Status::new("alpha", START_US + second * 1_000_000);
    status.warnings.push(Warning::new("agent_silent", "afterimage-agent is not running", "start it"));
    status
}

fn view() -> View {
    View::new("alpha", Paint::PLAIN, false)
}

fn buffer(view: &mut View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(view, frame)).unwrap();
    terminal.backend().buffer().clone()
}

/// What the terminal shows, without spaces at the ends of lines and empty lines at the end.
fn screen(view: &mut View, width: u16, height: u16) -> String {
    let buffer = buffer(view, width, height);
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

fn key(code: KeyCode) -> Event {
    Event::Key(KeyEvent::new(code, KeyModifiers::NONE))
}

#[test]
fn a_healthy_group_shows_both_lags_and_the_throughput() {
    let mut view = view();
    for second in 0..4 {
        let mut orders = group("orders", Role::Primary, Protection::InSync);
        orders.lag = Some(Lag { seconds: second as f64, bytes: second * 4096 });
        orders.apply_lag = (second > 1).then_some(ApplyLag { seconds: 0.0 });
        orders.written_bytes = Some(second * second * 1_048_576);
        view.feed(status(second, vec![orders]));
    }
    assert_eq!(
        screen(&mut view, 70, 12),
        "\
afterimage on alpha  2026-09-21 14:13:23 UTC  q leaves

orders  primary  sync: in sync for 1m 18s  peer beta (1.2 ms)
  transport lag                  ▂▅█  3.0s, 12 KiB
  apply lag                     ??    none
  sent                          ????  unknown, 5 MiB/s written",
        "the newest is at the right end, and what was not known is no 0"
    );
}

#[test]
fn a_catch_up_has_a_bar_and_what_is_wrong_has_an_action() {
    let mut view = view();
    let mut orders = group("orders", Role::Primary, Protection::CatchingUp);
    orders.catchup = Some(CatchUp {
        done_bytes: 1000,
        total_bytes: 1000,
        rate_bytes_per_s: Some(1 << 20),
        eta_s: Some(9),
        first: false,
    });
    view.feed(status(0, vec![orders, group("mail", Role::Primary, Protection::Degraded)]));
    let shown = screen(&mut view, 100, 24);
    assert!(shown.contains("  catch-up 99%, 1 MiB/s, 9s left ━"), "{shown}");
    assert!(shown.contains("[catch-up-begun]") && shown.contains("    do: nothing; it ends"), "{shown}");
    assert!(shown.contains("DEGRADED for 1m 15s") && shown.contains("[degraded]"), "{shown}");
}

#[test]
fn daemons_that_do_not_answer_are_shown_beside_what_was_last_known() {
    let mut view = view();
    view.feed(silent(0));
    assert!(
        screen(&mut view, 80, 24).contains("! afterimage-agent is not running [stopped]\n  do: start it")
    );
    view.feed(status(1, vec![group("orders", Role::Primary, Protection::InSync)]));
    for second in 2..5 {
        view.feed(silent(second));
    }
    let shown = screen(&mut view, 80, 24);
    assert!(shown.contains("no daemon answers: what is below was last known 3s ago"), "{shown}");
    assert!(shown.contains("orders  primary") && shown.contains("[stopped]"), "{shown}");
    view.feed(status(5, vec![group("orders", Role::Primary, Protection::InSync)]));
    assert!(!screen(&mut view, 80, 24).contains("no daemon answers"));
}

#[test]
fn many_groups_are_scrolled_and_no_size_is_too_small() {
    let mut view = view();
    let groups = (0..30).map(|n| group(&format!("g{n:02}"), Role::Standby, Protection::AsyncStreaming));
    view.feed(status(0, groups.collect()));
    let shown = screen(&mut view, 80, 24);
    assert!(shown.contains("g00 ") && shown.contains("g03 ") && !shown.contains("g04 "), "{shown}");
    assert!(shown.ends_with("26 more below, 0 above: use the arrow keys"), "{shown}");
    assert_eq!(view.handle(&key(KeyCode::Down)), Next::Stay);
    let shown = screen(&mut view, 80, 24);
    assert!(!shown.contains("g00 ") && shown.contains("g04 ") && shown.contains("1 above"), "{shown}");
    view.handle(&key(KeyCode::End));
    assert!(screen(&mut view, 80, 24).contains("g29 "));
    for (width, height) in [(1, 1), (1, 50), (300, 1), (20, 5), (53, 24), (58, 24)] {
        screen(&mut view, width, height);
    }
    view.feed(status(1, vec![group("g00", Role::Standby, Protection::AsyncStreaming)]));
    assert!(screen(&mut view, 80, 24).contains("g00 "), "what was scrolled to is gone");
}

#[test]
fn the_history_is_bounded_and_a_counter_that_begins_anew_is_no_rate() {
    let mut view = view();
    for second in 0..2_000 {
        let mut orders = group("orders", Role::Standby, Protection::AsyncStreaming);
        orders.received_bytes = Some(second % 1_000 * 4096);
        view.feed(status(second, vec![orders]));
    }
    let history = view.history("orders").unwrap();
    assert_eq!(history.moved.samples().count(), 512);
    let mut orders = group("orders", Role::Standby, Protection::AsyncStreaming);
    assert_eq!(history.moved.newest(), Some(4096));
    orders.received_bytes = Some(0);
    view.feed(status(2_000, vec![orders]));
    assert_eq!(view.history("orders").unwrap().moved.newest(), None);
    view.feed(status(2_001, Vec::new()));
    assert!(view.history("orders").is_none(), "a group that is gone is forgotten");
}

#[test]
fn keys_that_leave() {
    let control_c = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
    for event in [key(KeyCode::Char('q')), key(KeyCode::Esc), control_c] {
        assert_eq!(view().handle(&event), Next::Leave);
    }
    for event in [key(KeyCode::Char('c')), Event::Resize(10, 10)] {
        assert_eq!(view().handle(&event), Next::Stay);
    }
}

#[test]
fn nothing_is_coloured_where_that_is_not_wanted() {
    let mut view = view();
    view.feed(status(0, vec![group("orders", Role::Primary, Protection::Degraded)]));
    view.feed(silent(1));
    let shown = buffer(&mut view, 80, 24);
    assert!(shown.content().iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset)));
}

#[test]
fn a_stranger_cannot_drive_the_terminal() {
    let mut view = view();
    let mut orders = group("orders", Role::Primary, Protection::InSync);
    orders.warnings.push(Warning::new("x", "a\x1b[2Jb", "c\x07"));
    view.feed(status(0, vec![orders]));
    assert!(screen(&mut view, 80, 24).contains("! a?[2Jb\n    do: c?"));
}

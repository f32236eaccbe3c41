//! Draws the view: a line for the host, then each group with its lags, its throughput, and what is wrong.

use afterimage_contract::status::{GroupStatus, Role, Status};
use afterimage_contract::units::ByteSize;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{LineGauge, Paragraph, RenderDirection, Sparkline, SparklineBar};

use super::super::advice::{Note, notes};
use super::super::render::{mode, peer, role, state};
use super::view::{History, Series, View};
use crate::text::{Paint, apply_lag, lag, printable, span};

/// Columns before a sparkline.
const LABEL: u16 = 16;
/// Columns after it, for the newest number.
const NUMBER: u16 = 34;
/// A narrower sparkline tells nothing.
const LEAST_SPARKLINE: u16 = 8;

/// Draws all of it.
pub(super) fn draw(view: &mut View, frame: &mut Frame) {
    let mut page = Page { area: frame.area(), y: frame.area().y, frame, paint: view.paint };
    let Some(status) = &view.status else {
        page.text(Line::from(format!("{}: asking the daemons", view.node)));
        return;
    };
    page.header(view, status);
    for warning in &status.warnings {
        page.note("", &Note::warning(warning));
    }
    if status.groups.is_empty() && status.warnings.is_empty() {
        page.text(Line::from(if view.unhealthy { "all groups are healthy" } else { "no group to show" }));
    }
    for (index, group) in status.groups.iter().enumerate().skip(view.first) {
        let height = page.height_of(group);
        // One group is shown even if it is cut off.
        if index > view.first && page.left() < height {
            let more = status.groups.len() - index;
            page.bottom(format!("{more} more below, {} above: use the arrow keys", view.first));
            return;
        }
        page.group(group, view.history(&group.name), status.time_us);
    }
    if view.first > 0 {
        page.bottom(format!("{} above: use the arrow keys", view.first));
    }
}

/// The terminal, filled from the top.
struct Page<'a, 'b> {
    frame: &'a mut Frame<'b>,
    area: Rect,
    /// The next free line.
    y: u16,
    paint: Paint,
}

impl Page<'_, '_> {
    fn header(&mut self, view: &View, status: &Status) {
        let time = afterimage_contract::admin::format_time(status.time_us);
        let time = time.split_once('.').map_or(time.as_str(), |(seconds, _)| seconds).replace('T', " ");
        let text = format!("afterimage on {}  {time} UTC  q leaves", printable(&view.node));
        self.text(Line::styled(text, Style::new().add_modifier(Modifier::BOLD)));
        if let Some(since) = view.silent_since_us {
            let ago = span(status.time_us.saturating_sub(since) / 1_000_000);
            let text = format!("no daemon answers: what is below was last known {ago} ago");
            self.text(Line::styled(text, self.colour(Color::Red)));
        }
    }

    fn group(&mut self, group: &GroupStatus, history: Option<&History>, now_us: u64) {
        self.text(Line::default());
        let since = group.since_us.map(|since| span(now_us.saturating_sub(since) / 1_000_000));
        let since = since.map(|span| format!(" for {span}")).unwrap_or_default();
        let bold = Style::new().add_modifier(Modifier::BOLD);
        self.text(Line::from(vec![
            Span::styled(printable(&group.name), bold),
            Span::raw(format!("  {}  {}: ", role(group.role), mode(group.mode))),
            Span::styled(state(group), self.colour(colour_of(group)).add_modifier(Modifier::BOLD)),
            Span::raw(format!("{since}  peer {}", peer(&group.peer))),
        ]));
        if let Some(history) = history {
            self.spark("transport lag", &history.transport_lag, lag(group.lag));
            self.spark("apply lag", &history.apply_lag, apply_lag(group.apply_lag));
            let (label, text) = match group.role {
                Role::Primary => {
                    ("sent", format!("{}, {} written", rate(&history.moved), rate(&history.written)))
                }
                _ => ("received", rate(&history.moved)),
            };
            self.spark(label, &history.moved, text);
        }
        if let Some(catchup) = group.catchup {
            let ratio = match catchup.total_bytes {
                0 => 0.0,
                total => (catchup.done_bytes as f64 / total as f64).clamp(0.0, 0.999),
            };
            let rate = catchup.rate_bytes_per_s.map_or_else(|| "rate unknown".to_owned(), per_second);
            let eta =
                catchup.eta_s.map_or_else(|| "time left unknown".to_owned(), |s| format!("{} left", span(s)));
            let what = if catchup.first { "first sync" } else { "catch-up" };
            let area = self.next();
            let label = format!("  {what} {:.0}%, {rate}, {eta}", (ratio * 100.0).floor());
            let gauge = LineGauge::default()
                .ratio(ratio)
                .filled_symbol("━")
                .unfilled_symbol("─")
                .label(label)
                .filled_style(self.colour(Color::Yellow));
            self.frame.render_widget(gauge, area);
        }
        for note in notes(group) {
            self.note("  ", &note);
        }
    }

    /// Lines that [`Page::group`] takes.
    fn height_of(&self, group: &GroupStatus) -> u16 {
        let notes: usize = notes(group).iter().map(|note| self.lines_of("  ", note).len()).sum();
        5 + u16::from(group.catchup.is_some()) + u16::try_from(notes).unwrap_or(u16::MAX / 2)
    }

    fn note(&mut self, indent: &str, note: &Note) {
        let colour = if note.passing { Color::Yellow } else { Color::Red };
        for (index, text) in self.lines_of(indent, note).into_iter().enumerate() {
            let style = if index == 0 { self.colour(colour) } else { Style::new() };
            self.text(Line::styled(text, style));
        }
    }

    fn lines_of(&self, indent: &str, note: &Note) -> Vec<String> {
        let mark = if note.passing { '~' } else { '!' };
        let width = usize::from(self.area.width);
        let mut lines = wrap(&format!("{mark} {}", note.head()), indent, width);
        if let Some(advice) = note.advice() {
            lines.extend(wrap(&advice, &format!("{indent}  "), width));
        }
        lines
    }

    /// A label, a sparkline with the newest at its right end, and the newest number.
    fn spark(&mut self, label: &str, series: &Series, number: String) {
        let area = self.next();
        let width = area.width.saturating_sub(LABEL + NUMBER);
        let label = Line::from(format!("  {label}"));
        if width < LEAST_SPARKLINE {
            let text = format!("{:<width$}{number}", label.to_string(), width = usize::from(LABEL));
            self.frame.render_widget(Paragraph::new(text), area);
            return;
        }
        let part = |x, width| Rect { x: area.x + x, width, ..area };
        let samples = series.samples().take(usize::from(width));
        let bars: Vec<SparklineBar> = samples.map(SparklineBar::from).collect();
        let sparkline = Sparkline::default()
            .data(bars)
            .direction(RenderDirection::RightToLeft)
            .absent_value_symbol("?")
            .style(self.colour(Color::Cyan));
        self.frame.render_widget(Paragraph::new(label), part(0, LABEL));
        self.frame.render_widget(sparkline, part(LABEL, width));
        self.frame.render_widget(Paragraph::new(format!("  {number}")), part(LABEL + width, NUMBER));
    }

    fn text(&mut self, line: Line<'_>) {
        let area = self.next();
        self.frame.render_widget(line, area);
    }

    /// In the last line, over what may be there.
    fn bottom(&mut self, text: String) {
        let area =
            Rect { y: self.area.bottom().saturating_sub(1), height: self.area.height.min(1), ..self.area };
        let line = format!("{text:<width$}", width = usize::from(area.width));
        self.frame.render_widget(Line::styled(line, Style::new().add_modifier(Modifier::DIM)), area);
    }

    /// Free lines, but for the last one, which says what is not shown.
    fn left(&self) -> u16 {
        self.area.bottom().saturating_sub(self.y + 1)
    }

    /// The next line; an empty area below the end of the terminal.
    fn next(&mut self) -> Rect {
        let height = u16::from(self.y < self.area.bottom());
        let area = Rect { y: self.y, height, ..self.area }.intersection(self.area);
        self.y = self.y.saturating_add(1);
        area
    }

    fn colour(&self, colour: Color) -> Style {
        if self.paint.is_coloured() { Style::new().fg(colour) } else { Style::new() }
    }
}

fn colour_of(group: &GroupStatus) -> Color {
    match group.protection {
        protection if protection.is_healthy() => Color::Green,
        _ if group.catchup.is_some() && group.peer.connected => Color::Yellow,
        _ => Color::Red,
    }
}

fn rate(series: &Series) -> String {
    series.newest().map_or_else(|| "unknown".to_owned(), per_second)
}

fn per_second(bytes: u64) -> String {
    format!("{}/s", ByteSize::from_bytes(bytes).approximate())
}

/// Breaks a text between words into lines that fit; those after the first are indented by two more columns.
fn wrap(text: &str, indent: &str, width: usize) -> Vec<String> {
    let mut lines = vec![indent.to_owned()];
    let mut is_empty = true;
    for word in text.split(' ') {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if !is_empty && line + 1 + word.chars().count() > width {
            lines.push(format!("{indent}  {word}"));
        } else if let Some(line) = lines.last_mut() {
            if !is_empty {
                line.push(' ');
            }
            line.push_str(word);
        }
        is_empty = false;
    }
    lines
}

//! Two pictures: how far each goal was reached, and how long clients waited.

use anyhow::{Result, anyhow};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    goals::{Goal, Wanted},
    turns::Turns,
};
use crate::{case::Case, contender::Contender, fio::Latency, stats::median};

const FONT: &str = "sans-serif";
const WIDTH: u32 = 1000;
/// Of a bar with its name.
const ROW_HEIGHT: u32 = 28;
const CASE_HEIGHT: u32 = 330;
const MET: RGBColor = RGBColor(76, 140, 92);
const NOT_MET: RGBColor = RGBColor(190, 82, 70);
const PERCENTILES: [&str; 3] = ["p50", "p99", "p99.9"];
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A bar for each ratio that has a goal and was measured, and a mark where the goal is. None if there is none.
pub fn ratios(goals: &[Goal]) -> Result<Option<String>> {
    let is_ratio = |goal: &&Goal| goal.unit == "×" && goal.reached.is_some_and(|reached| reached > 0.0);
    let bars: Vec<&Goal> = goals.iter().filter(is_ratio).collect();
    if bars.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    let size = (WIDTH, bars.len() as u32 * ROW_HEIGHT + 80);
    draw_ratios(&SVGBackend::with_string(&mut svg, size).into_drawing_area(), &bars)
        .map_err(|error| anyhow!("{error}"))?;
    Ok(Some(svg))
}

fn draw_ratios(area: &Area<'_>, bars: &[&Goal]) -> Result<(), Box<dyn std::error::Error>> {
    area.fill(&WHITE)?;
    let values = || bars.iter().flat_map(|goal| [goal.reached.unwrap_or(1.0), wanted(goal)]);
    let low = values().fold(0.5, f64::min) / 1.3;
    let high = values().fold(2.0, f64::max) * 1.6;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "Ratios, and their goals (| at least, right of it is good; ¦ at most, left of it is good)",
            (FONT, 15),
        )
        .margin(8)
        .x_label_area_size(25)
        .y_label_area_size(430)
        .build_cartesian_2d((low..high).log_scale(), 0.0..bars.len() as f64)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().y_labels(0).x_labels(8).draw()?;
    let names = (FONT, 13).into_font().color(&BLACK);
    for (row, goal) in bars.iter().rev().enumerate() {
        let (row, reached) = (row as f64, goal.reached.unwrap_or(1.0));
        let color = if goal.is_met() == Some(true) { MET } else { NOT_MET };
        let bar = Rectangle::new([(low, row + 0.2), (reached, row + 0.8)], color.filled());
        chart.draw_series([bar])?;
        let mark = |from, to| {
            PathElement::new(vec![(wanted(goal), from), (wanted(goal), to)], BLACK.stroke_width(2))
        };
        match goal.wanted {
            Wanted::AtLeast(_) => chart.draw_series([mark(row + 0.05, row + 0.95)])?,
            Wanted::AtMost(_) => {
                chart.draw_series([mark(row + 0.05, row + 0.4), mark(row + 0.6, row + 0.95)])?
            }
        };
        let (x, y) = chart.backend_coord(&(low, row + 0.5));
        area.draw(&Text::new(
            goal.what.clone(),
            (x - 6, y),
            names.clone().pos(Pos::new(HPos::Right, VPos::Center)),
        ))?;
        let (x, _) = chart.backend_coord(&(f64::max(reached, wanted(goal)), row + 0.5));
        area.draw(&Text::new(
            format!("{reached:.2}"),
            (x + 6, y),
            names.clone().pos(Pos::new(HPos::Left, VPos::Center)),
        ))?;
    }
    area.present()?;
    Ok(())
}

fn wanted(goal: &Goal) -> f64 {
    let (Wanted::AtLeast(wanted) | Wanted::AtMost(wanted)) = goal.wanted;
    wanted
}

/// For each case the percentiles of all contenders' writes. None without any.
pub fn latencies(taken: Turns<'_>) -> Result<Option<String>> {
    let measured = |case: &Case| Contender::ALL.iter().any(|one| taken.of(*case, *one).next().is_some());
    let cases: Vec<Case> = Case::ALL.into_iter().filter(measured).collect();
    if cases.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    let size = (WIDTH, cases.len() as u32 * CASE_HEIGHT);
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    draw_latencies(&root, &cases, taken).map_err(|error| anyhow!("{error}"))?;
    drop(root);
    Ok(Some(svg))
}

fn draw_latencies(
    root: &Area<'_>,
    cases: &[Case],
    taken: Turns<'_>,
) -> Result<(), Box<dyn std::error::Error>> {
    root.fill(&WHITE)?;
    for (area, case) in root.split_evenly((cases.len(), 1)).iter().zip(cases) {
        draw_case(area, *case, taken)?;
    }
    root.present()?;
    Ok(())
}

fn draw_case(area: &Area<'_>, case: Case, taken: Turns<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let bars: Vec<(Contender, [f64; 3])> =
        Contender::ALL.into_iter().filter_map(|one| Some((one, percentiles(taken, case, one)?))).collect();
    let values = || bars.iter().flat_map(|(_, values)| *values);
    let low = values().fold(f64::INFINITY, f64::min) / 2.0;
    let high = values().fold(low * 4.0, f64::max) * 1.3;
    let mut chart = ChartBuilder::on(area)
        .caption(format!("Write latency, µs: {}", case.title()), (FONT, 16))
        .margin(8)
        .x_label_area_size(25)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..PERCENTILES.len() as f64 + 0.9, (low..high).log_scale())?;
    chart.configure_mesh().disable_x_mesh().x_labels(0).y_label_formatter(&|us| format!("{us:.0}")).draw()?;
    let width = 0.85 / bars.len() as f64;
    for (number, (contender, values)) in bars.iter().enumerate() {
        let color = color(*contender);
        let bar = |(group, us): (usize, &f64)| {
            let left = group as f64 + 0.05 + number as f64 * width;
            Rectangle::new([(left, low), (left + width * 0.9, *us)], color.filled())
        };
        chart
            .draw_series(values.iter().enumerate().map(bar))?
            .label(contender.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    let names = (FONT, 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    for (group, name) in PERCENTILES.iter().enumerate() {
        let (x, y) = chart.backend_coord(&(group as f64 + 0.475, low));
        let (left, top) = area.get_base_pixel();
        area.draw(&Text::new(*name, (x - left, y - top + 6), names.clone()))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::MiddleRight)
        .label_font((FONT, 12))
        .border_style(BLACK.mix(0.2))
        .background_style(WHITE)
        .draw()?;
    Ok(())
}

/// The same in every picture.
fn color(contender: Contender) -> RGBAColor {
    let number = Contender::ALL.iter().position(|one| *one == contender).unwrap_or_default();
    Palette99::pick(number).to_rgba()
}

fn percentiles(taken: Turns<'_>, case: Case, contender: Contender) -> Option<[f64; 3]> {
    let middle =
        |of: fn(Latency) -> f64| median(taken.of(case, contender).map(|turn| of(turn.client.write_latency)));
    Some([middle(|l| l.p50_us)?, middle(|l| l.p99_us)?, middle(|l| l.p999_us)?])
}

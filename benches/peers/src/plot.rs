//! The results as a plot.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    Result,
    measure::{Effort, Sample},
    report::{Entry, Spread},
};

const WIDTH: u32 = 1180;
const ROW: u32 = 46;
const NAMES: u32 = 190;
/// Says what the marks are.
const KEY: &str = "Each dot is the median of the rounds, each line runs from their minimum to their maximum. \
                   Both axes are logarithmic.";
const FONT: &str = "sans-serif";
/// Colors that color-blind readers can distinguish (Okabe and Ito).
const COLORS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

struct Series {
    name: &'static str,
    value: fn(&Sample) -> f64,
}

const THROUGHPUT: [Series; 2] = [
    Series {
        name: "1 process",
        value: |sample| sample.keep,
    },
    Series {
        name: "8 processes in parallel",
        value: |sample| sample.keep_together,
    },
];

const WRONG: [Series; 4] = [
    Series {
        name: "duplicates",
        value: |sample| sample.duplicates as f64,
    },
    Series {
        name: "failed immediately, strict",
        value: |sample| sample.strict as f64,
    },
    Series {
        name: "failed immediately, listen",
        value: |sample| sample.listen as f64,
    },
    Series {
        name: "failed later, strict",
        value: |sample| sample.later as f64,
    },
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn write(path: &Path, entries: &[Entry], effort: Effort) -> Result<()> {
    let plots = 148 + ROW * u32::try_from(entries.len())?;
    let height = plots + 20;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let (plots, _) = root.split_vertically(plots);
    let (left, right) = plots.split_horizontally(NAMES + (WIDTH - NAMES) / 2);

    // The axis counts decades: 10^x ports per second.
    let decades = Axis {
        title: "Ports picked and kept per second",
        scale: f64::log10,
        range: decades(entries),
        label: |decade| thousands(10_f64.powf(decade)),
    };
    panel(&left, entries, &THROUGHPUT, NAMES, &decades)?;

    let title = format!("Duplicates and failed binds, of {} ports", effort.all());
    let wrong = Axis {
        title: &title,
        scale: from_zero,
        range: 0.0..from_zero(effort.all() as f64),
        label: |mark| match mark {
            mark if mark < 0.5 => "0".to_owned(),
            mark => thousands(10_f64.powf(mark - 1.0)),
        },
    };
    panel(&right, entries, &WRONG, 0, &wrong)?;
    let centered = Pos::new(HPos::Center, VPos::Bottom);
    let style = (FONT, 13).into_font().color(&BLACK).pos(centered);
    let bottom = (i32::try_from(WIDTH / 2)?, i32::try_from(height)? - 6);
    label(&root, KEY.to_owned(), bottom, style)?;
    root.present()?;
    Ok(())
}

struct Axis<'a> {
    title: &'a str,
    /// Converts a value to a position on the axis; labels are at whole numbers.
    scale: fn(f64) -> f64,
    range: std::ops::Range<f64>,
    label: fn(f64) -> String,
}

/// Returns the decades that contain the throughputs.
fn decades(entries: &[Entry]) -> std::ops::Range<f64> {
    let spreads = || {
        let all = entries.iter();
        all.flat_map(|entry| THROUGHPUT.iter().map(|series| entry.spread(series.value)))
    };
    let min = spreads()
        .map(|spread| spread.min)
        .fold(f64::INFINITY, f64::min);
    let max = spreads().map(|spread| spread.max).fold(1.0, f64::max);
    min.log10().floor()..max.log10().ceil()
}

/// A logarithm that is also defined for zero: 0, 1, 10, 100 are equally spaced.
fn from_zero(value: f64) -> f64 {
    if value < 1.0 {
        value
    } else {
        1.0 + value.log10()
    }
}

fn thousands(value: f64) -> String {
    match value.round() {
        value if value >= 1e6 => format!("{} M", value / 1e6),
        value if value >= 1e3 => format!("{} k", value / 1e3),
        value => value.to_string(),
    }
}

fn panel(
    area: &Area<'_>,
    entries: &[Entry],
    all: &[Series],
    names: u32,
    axis: &Axis<'_>,
) -> Result<()> {
    let rows = entries.len() as f64;
    let range = axis.range.clone();
    let pad = (range.end - range.start) * 0.03;
    let chart = ChartBuilder::on(area)
        .caption(axis.title, (FONT, 17))
        .margin(10)
        .margin_right(24)
        .set_label_area_size(LabelAreaPosition::Left, names)
        .set_label_area_size(LabelAreaPosition::Bottom, 80)
        .build_cartesian_2d(range.start - pad..range.end + pad, 0.0..rows)?;

    let grid = RGBColor(222, 222, 222);
    let text = (FONT, 13).into_font();
    let plotting = chart.plotting_area().clone();
    let mut mark = range.start;
    while mark <= range.end {
        plotting.draw(&PathElement::new([(mark, 0.0), (mark, rows)], grid))?;
        let centered = Pos::new(HPos::Center, VPos::Top);
        let (x, y) = chart.backend_coord(&(mark, 0.0));
        label(
            area,
            (axis.label)(mark),
            (x, y + 6),
            text.color(&BLACK).pos(centered),
        )?;
        mark += 1.0;
    }
    for (row, entry) in entries.iter().enumerate() {
        let top = rows - row as f64;
        plotting.draw(&PathElement::new(
            [(range.start - pad, top), (range.end + pad, top)],
            grid,
        ))?;
        if names > 0 {
            let (x, y) = chart.backend_coord(&(range.start - pad, top - 0.5));
            let before = text.color(&BLACK).pos(Pos::new(HPos::Right, VPos::Center));
            label(area, entry.tool.name.to_owned(), (x - 10, y), before)?;
        }
        for (index, series) in all.iter().enumerate() {
            let step = 0.8 / all.len() as f64;
            let y = top - 0.1 - step * (index as f64 + 0.5);
            let Spread { median, min, max } = entry.spread(series.value);
            let [median, min, max] = [median, min, max].map(axis.scale);
            let color = COLORS[index];
            plotting.draw(&PathElement::new(
                [(min, y), (max, y)],
                color.stroke_width(2),
            ))?;
            plotting.draw(&Circle::new((median, y), 4, color.filled()))?;
        }
    }
    legend(&chart, area, all)
}

type Chart<'a, 'b> = ChartContext<
    'a,
    SVGBackend<'b>,
    Cartesian2d<plotters::coord::types::RangedCoordf64, plotters::coord::types::RangedCoordf64>,
>;

/// Draws the legend below the axis, two entries per line.
fn legend(chart: &Chart<'_, '_>, area: &Area<'_>, all: &[Series]) -> Result<()> {
    let (left, axis) = chart.backend_coord(&(chart.x_range().start, chart.y_range().start));
    let origin = area.get_base_pixel();
    let after = (FONT, 13).into_font().color(&BLACK);
    let after = after.pos(Pos::new(HPos::Left, VPos::Center));
    let places = [(0, 40), (190, 40), (0, 60), (190, 60)];
    for ((series, color), (right, down)) in all.iter().zip(COLORS).zip(places) {
        let (x, y) = (left + right + 4, axis + down);
        area.draw(&Circle::new(
            (x - origin.0, y - origin.1),
            4,
            color.filled(),
        ))?;
        label(area, series.name.to_owned(), (x + 10, y), after.clone())?;
    }
    Ok(())
}

/// Writes text at a position of the whole plot.
fn label(area: &Area<'_>, text: String, at: (i32, i32), style: TextStyle<'_>) -> Result<()> {
    let origin = area.get_base_pixel();
    Ok(area.draw(&Text::new(text, (at.0 - origin.0, at.1 - origin.1), style))?)
}

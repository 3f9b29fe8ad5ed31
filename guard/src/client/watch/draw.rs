//! The picture of a view.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph, Row, Table, TableState};

use super::view::{RunView, ServiceView, View};
use crate::client::words::{endpoint, held_by, holder, judgement, owner};
use crate::report::{printable, span};

/// From this width on, holders and timeline stand side by side.
const WIDE: u16 = 120;

/// Draws all of `view`.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, socket: &str, colour: bool) {
    let paint = Paint { colour };
    let area = frame.area();
    let rows = u16::try_from(view.services.len()).unwrap_or(u16::MAX).saturating_add(1);
    let most = (area.height.saturating_sub(2) / 2).max(2);
    let [head, table, details, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows.min(most)),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(paint.head(view, socket), head);
    paint.services(frame, view, table);
    let halves = [Constraint::Percentage(50), Constraint::Percentage(50)];
    let direction = if area.width >= WIDE { Layout::horizontal(halves) } else { Layout::vertical(halves) };
    let [left, right] = direction.areas(details);
    if let Some((_, name, service)) = view.selected() {
        frame.render_widget(paint.holders(name, service), left);
        paint.timeline(frame, service.run.as_ref(), right);
    }
    frame.render_widget(Paragraph::new("q quits · ↑ ↓ another service · r looks again"), foot);
}

struct Paint {
    colour: bool,
}

impl Paint {
    fn colour(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn verdict(&self, verdict: &str) -> Style {
        match verdict {
            "free" => self.colour(Color::Green),
            "busy" => self.colour(Color::Yellow),
            _ => self.colour(Color::Red),
        }
    }

    fn head<'v>(&self, view: &View, socket: &'v str) -> Paragraph<'v> {
        let count = view.services.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut parts = vec![
            Span::styled("portguard watch", Modifier::BOLD),
            Span::raw(format!("  {socket}  {count} service{plural}")),
        ];
        let mut add = |text: String, style: Style| parts.push(Span::styled(format!("  {text}"), style));
        match &view.gone {
            Some(why) => {
                let style = self.colour(Color::Red).add_modifier(Modifier::REVERSED);
                add(format!("GONE, waiting for the next sidecar: {why}"), style);
            }
            None if view.lives > 0 => {
                add(format!("connected to sidecar number {}", view.lives + 1), Style::new());
            }
            None => add("connected".to_owned(), Style::new()),
        }
        if view.lost > 0 {
            add(format!("{} kernel events lost", view.lost), self.colour(Color::Red));
        }
        match view.missed {
            Some(Some(count)) => add(format!("{count} events missed"), self.colour(Color::Red)),
            Some(None) => add("some events missed".to_owned(), self.colour(Color::Red)),
            None => {}
        }
        Paragraph::new(Line::from(parts))
    }

    fn services(&self, frame: &mut Frame<'_>, view: &View, area: Rect) {
        let rows = view.services.iter().map(|(name, service)| self.service(name, service));
        let widest = view.services.keys().map(|name| name.chars().count()).max().unwrap_or(0);
        let widths = [
            Constraint::Length(u16::try_from(widest.clamp(7, 24)).unwrap_or(24)),
            Constraint::Length(7),
            Constraint::Length(7),
            Constraint::Fill(2),
            Constraint::Fill(3),
            Constraint::Fill(2),
            Constraint::Length(6),
        ];
        let head = Row::new(["SERVICE", "VERDICT", "TIER", "ENDPOINTS", "HELD BY", "LAST RUN", "LOST"]);
        let table = Table::new(rows, widths)
            .header(head.style(Modifier::BOLD))
            .row_highlight_style(Modifier::REVERSED)
            .column_spacing(2);
        let selected = view.selected().map(|(index, ..)| index);
        frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
    }

    fn service<'v>(&self, name: &'v str, service: &'v ServiceView) -> Row<'v> {
        let endpoints = service.snapshot.as_ref().map(|snapshot| {
            let endpoints: Vec<String> = snapshot.endpoints.iter().map(endpoint).collect();
            endpoints.join(" ")
        });
        let held = service.snapshot.as_ref().and_then(held_by);
        let run = service.run.as_ref().map(|run| self.run_in_short(run)).unwrap_or_default();
        Row::new([
            Line::raw(name),
            Line::styled(service.verdict(), self.verdict(service.verdict())),
            Line::raw(service.tier.as_str()),
            Line::raw(endpoints.unwrap_or_default()),
            Line::raw(held.unwrap_or_default()),
            run,
            Line::raw(service.lost.to_string()),
        ])
    }

    fn run_in_short(&self, run: &RunView) -> Line<'static> {
        match &run.end {
            None => Line::styled(format!("{} under way", run.command), self.colour(Color::Yellow)),
            Some(end) => {
                let colour = if end.good { Color::Green } else { Color::Red };
                Line::styled(format!("{} in {}", end.outcome, end.took), self.colour(colour))
            }
        }
    }

    fn holders<'v>(&self, name: &'v str, service: &'v ServiceView) -> Paragraph<'v> {
        let mut lines = Vec::new();
        if let Some(why) = &service.shortfall {
            lines.push(Line::raw(printable(&format!("{} tier: {why}", service.tier))));
        }
        match &service.snapshot {
            None => lines.push(Line::raw("nothing has been looked at yet")),
            Some(snapshot) => {
                for one in &snapshot.endpoints {
                    let reason = one.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
                    let text = printable(&format!("{} is {}{reason}", endpoint(one), one.verdict));
                    lines.push(Line::styled(text, self.verdict(&one.verdict)));
                }
                for one in &snapshot.holders {
                    lines.push(Line::raw(format!("  {}", holder(one))));
                    for process in &one.owners.processes {
                        lines.push(Line::raw(format!("    {}", owner(process))));
                        lines.push(Line::raw(format!("      {}", judgement(process))));
                    }
                }
                if snapshot.holders_left_out > 0 {
                    lines.push(Line::raw(format!("  and {} more", snapshot.holders_left_out)));
                }
            }
        }
        let title = format!(" {name}: {} ", service.verdict());
        Paragraph::new(lines).block(Block::new().borders(Borders::TOP).title(title))
    }

    /// The end of the timeline, when all of it is longer than the place for it.
    fn timeline(&self, frame: &mut Frame<'_>, run: Option<&RunView>, area: Rect) {
        let title = match run {
            None => " no run yet ".to_owned(),
            Some(run) => match &run.end {
                None => format!(" {} {} under way ", run.command, run.id),
                Some(end) => format!(" {} {}: {} in {} ", run.command, run.id, end.outcome, end.took),
            },
        };
        let room = usize::from(area.height.saturating_sub(1));
        let lines = run.map(|run| {
            let skipped = run.lines.len().saturating_sub(room);
            run.lines.iter().skip(skipped).map(|(offset, text)| {
                let offset = format!("+{}", span(Duration::from_nanos(*offset)));
                Line::raw(format!("{offset:>10}  {text}"))
            })
        });
        let lines: Vec<Line<'_>> = lines.into_iter().flatten().collect();
        let block = Block::new().borders(Borders::TOP).title(title);
        frame.render_widget(Paragraph::new(lines).block(block), area);
    }
}

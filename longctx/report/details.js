// Chosen runs side by side: command, settings, predictions.

const PAGE = 10;

/** Fill `place` with the runs of the numbers in `chosen`. */
function showDetails(place, data, chosen, view, choose, redraw) {
  if (!chosen.length) {
    place.replaceChildren(html("p", { class: "empty" }, "Tick rows of the table, or choose points of a chart."));
    return;
  }
  const runs = chosen.map((number) => data.runs[number]);
  const chips = runs.map((run, n) => html("span", { class: "chip" },
    html("span", {}, html("strong", {}, run.label), ` ${run.model}`),
    html("button", { type: "button", "aria-label": `remove ${run.label}`, click: () => choose(chosen[n]) }, "\u00d7")));
  place.replaceChildren(
    html("div", { class: "chips" }, ...chips),
    ...settingsPart(runs, view, redraw),
    ...predictionsPart(data, runs, view, redraw),
  );
}

function settingsPart(runs, view, redraw) {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differs = (name) => new Set(runs.map((run) => run.settings[name])).size > 1;
  const shown = view.onlyDifferences && runs.length > 1 ? names.filter(differs) : names;
  const rows = shown.map((name) => html("tr", { class: differs(name) ? "differs" : "" },
    html("th", { scope: "row", class: "first" }, name),
    ...runs.map((run) => html("td", { class: "value", dir: "auto" }, run.settings[name] ?? "\u2013"))));
  const toggle = check("only what differs", view.onlyDifferences, (checked) => {
    view.onlyDifferences = checked;
    redraw();
  });
  const heads = runs.map((run) => html("th", { scope: "col" }, run.label));
  return [
    html("h3", {}, "Settings"),
    runs.length > 1 ? toggle : null,
    html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Settings" },
      html("table", {}, html("thead", {}, html("tr", {}, html("th", { class: "first" }, "setting"), ...heads)),
        html("tbody", {}, ...rows))),
    html("h3", {}, runs.length > 1 ? "Commands" : "Command"),
    ...runs.flatMap((run) => [html("div", { class: "note" }, `${run.label}: ${run.file}`), html("code", {}, run.command)]),
  ].filter((node) => node !== null);
}

function predictionsPart(data, runs, view, redraw) {
  const contexts = [...new Set(runs.flatMap((run) =>
    Object.keys(run.predictions).filter((context) => run.predictions[context].length)))].map(Number).sort((a, b) => b - a);
  if (!contexts.length) return [];
  if (!contexts.includes(view.context)) view.context = contexts[0];
  const found = runs.map((run) =>
    new Map((run.predictions[view.context] || []).map((prediction) => [prediction.sample, prediction])));
  let samples = [...new Set(found.flatMap((predictions) => [...predictions.keys()]))];
  if (view.onlyOther) {
    samples = samples.filter((sample) =>
      new Set(found.filter((predictions) => predictions.has(sample)).map((predictions) => predictions.get(sample).text)).size > 1);
  }
  const controls = html("div", { class: "controls" },
    select("context, tokens", contexts.map((context) => [String(context), figure(context, 0)]), String(view.context),
      (value) => { view.context = Number(value); view.shown = PAGE; redraw(); }),
    runs.length > 1
      ? check("only where predictions differ", view.onlyOther, (checked) => { view.onlyOther = checked; redraw(); })
      : null);
  const more = html("button", { type: "button", click: () => { view.shown += PAGE; redraw(); } },
    `Show more of ${samples.length}`);
  return [
    html("h3", {}, "Predictions"),
    controls,
    samples.length ? null : html("p", { class: "empty" }, "All predictions are the same here."),
    ...samples.slice(0, view.shown).map((sample) => sampleCard(data.samples[sample], sample, runs, found)),
    view.shown < samples.length ? more : null,
  ].filter((node) => node !== null);
}

function sampleCard(sample, number, runs, found) {
  const answers = runs.map((run, n) => {
    const prediction = found[n].get(number);
    const scores = prediction && Object.entries(prediction.scores).filter(([, score]) => score !== null);
    return html("div", { class: "answer" },
      html("div", { class: "who" }, run.label),
      html("div", { class: "text", dir: "auto" },
        prediction ? prediction.text || "(nothing)" : "not among this run's samples in this page"),
      scores ? html("div", { class: "scores" }, scores.map(([name, score]) => `${name} ${figure(score, 3)}`).join("  ")) : null);
  });
  const about = (who, text) => html("div", { class: "answer asked" },
    html("div", { class: "who" }, who), html("div", { class: "text", dir: "auto" }, text));
  return html("div", { class: "sample" },
    html("div", { class: "interval" }, sample.id),
    html("div", { class: "answers" },
      sample.question ? about("question", sample.question) : null,
      about("references", sample.references.join(" | ") || "none"),
      ...answers));
}

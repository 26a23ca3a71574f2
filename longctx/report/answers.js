// The answer: for each task the smallest cache without a seen loss; and the table that it is of.

const percent = (share) => (typeof share === "number" ? `${figure(100 * share, 0)}%` : "\u2013");

/** The table of answers, a row a task; `open(group)` shows a group's table. */
function answerTable(data, open) {
  const all = data.groups.filter((group) => group.all_lengths && group.quality !== null);
  const told = all.filter((group) => group.told);
  const untold = all.filter((group) => !group.told);
  if (!all.length) {
    return [html("p", { class: "empty" },
      "No run here can be compared with a full cache (KV_MODE=none) of the same settings, samples and device.")];
  }
  const heads = ["task", "full cache", "smallest cache without a seen loss", "its size", "a loss beyond this is excluded"];
  const table = html("table", {},
    html("thead", {}, html("tr", {}, ...heads.map((head) => html("th", { scope: "col" }, head)))),
    html("tbody", {}, ...told.map((group) => answerRow(group, open))));
  const note = html("details", { class: "note" },
    html("summary", {}, `${untold.length} more, where no loss could be seen: the full cache is not told from answers that know nothing`),
    ...untold.map((group) => html("div", {}, `${group.name}: ${group.score} ${figure(group.quality, 3)}, n = ${group.n}`)));
  return [
    told.length ? html("div", { class: "scroll answers-table" }, table) : null,
    untold.length ? note : null,
  ].filter((node) => node !== null);
}

function answerRow(group, open) {
  const name = html("th", { scope: "row" },
    html("button", { type: "button", class: "link", title: "show its table", click: () => open(group) }, group.name));
  const full = html("td", { class: "number" }, `${group.score} ${figure(group.quality, 3)}`);
  const [best, ...others] = group.best.map((place) => group.choices[place]);
  if (!best) return html("tr", {}, name, full, html("td", { colspan: 3 }, group.answer));
  const more = [
    ...(others.length ? [`as small and without: ${others.map(nameOf).join(", ")}`] : []),
    ...(group.controls.length ? [`controls without one too: ${group.controls.join(", ")}`] : []),
  ];
  return html("tr", {}, name, full,
    html("td", {}, html("strong", {}, nameOf(best)), ...more.map((text) => html("div", { class: "interval" }, text))),
    html("td", { class: "number" }, percent(best.share), html("div", { class: "interval" }, best.saved.split(", ")[0])),
    html("td", { class: "number" },
      best.excluded >= best.full ? "none, all may be lost" : best.excluded ? figure(best.excluded, 3) : "any",
      html("div", { class: "interval" }, `${figure(best.full, 3)} \u2192 ${figure(best.value, 3)}, n = ${best.n}`)));
}

const nameOf = (choice) => `${choice.method} ${choice.kept}`;

/** A group's table: method by what is kept; `choose(run)` is called for a cell. */
function sweepTable(group, choose) {
  const at = (method, kept) => group.choices.find((choice) => choice.method === method && choice.kept === kept);
  const best = new Set(group.best.map((place) => group.choices[place]));
  const rows = group.methods.map((method) => html("tr", {},
    html("th", { scope: "row" }, method),
    ...group.kept.map((kept) => sweepCell(at(method, kept), best, group, choose))));
  return html("table", { class: "sweep" },
    html("thead", {}, html("tr", {}, html("th", {}, "method \\ kept"),
      ...group.kept.map((kept) => html("th", { scope: "col", class: "number" }, kept)))),
    html("tbody", {}, ...rows));
}

function sweepCell(choice, best, group, choose) {
  if (!choice) return html("td", {});
  if (choice.oom) return html("td", { class: "number oom" }, "out of memory");
  const seen = { "-1": "loss", 1: "gain" }[choice.seen] || "";
  const mark = (best.has(choice) ? "\u2605 " : "") + ({ loss: "\u25bc ", gain: "\u25b2 " }[seen] || "");
  const change = choice.value - choice.full;
  const lines = choice.value === undefined ? [] : [
    html("div", {}, `${mark}${figure(choice.value, 3)} ${signed(change, 3)}`),
    choice.interval ? html("div", { class: "interval" }, `[${choice.interval.map((end) => signed(end, 3)).join(", ")}]`) : null,
    choice.n < group.n ? html("div", { class: "partial" }, `n = ${choice.n}`) : null,
    choice.lost_at.length && choice.seen >= 0
      ? html("div", { class: "partial" }, `loss at ${choice.lost_at.map((length) => figure(length, 0)).join(", ")}`)
      : null,
  ];
  return html("td", { class: `number ${seen} ${best.has(choice) ? "best" : ""}` },
    html("button", { type: "button", class: "cell", title: "show this run beside the full cache",
      click: () => choose(group.full, choice.run) },
    ...lines, html("div", { class: "interval" }, choice.saved)));
}

const signed = (value, decimals) => `${value < 0 ? "\u2212" : "+"}${figure(Math.abs(value), decimals)}`;

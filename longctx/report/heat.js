// Heat maps: task by share kept, and the answer's depth by context length.

const HEATS = 8;

/** A cell coloured by `share`, 0 for the worst and 1 for the best. */
function heatCell(share, text, title) {
  if (share === null) return html("td", { class: "number" }, "\u2013");
  const level = Math.round(Math.min(1, Math.max(0, share)) * HEATS);
  return html("td", { class: `number heat heat${level}`, title }, text);
}

function heatTable(corner, columns, rows) {
  return html("table", { class: "heatmap" },
    html("thead", {}, html("tr", {}, html("th", {}, corner),
      ...columns.map((column) => html("th", { scope: "col", class: "number" }, column)))),
    html("tbody", {}, ...rows.map(([name, cells]) =>
      html("tr", {}, html("th", { scope: "row", title: name }, name), ...cells))));
}

/** Methods that the map of tasks can show: the best of each cell, then each. */
function heatMethods(data) {
  return [...new Set(data.groups.flatMap((group) => group.methods))].sort();
}

/** What is left of the full cache's score, by task and share kept; `method` empty for the best one. */
function taskMap(data, method) {
  const groups = data.groups.filter((group) => group.all_lengths && group.told);
  const columns = [...new Set(groups.flatMap((group) => group.kept))].sort(
    (a, b) => a.includes("tokens") - b.includes("tokens") || parseFloat(b.replace(",", "")) - parseFloat(a.replace(",", "")));
  const wanted = (choice) => (method ? choice.method === method : !choice.control);
  const rows = groups.flatMap((group) => {
    const cell = (value, kept) => {
      const found = group.choices.filter((choice) => choice.kept === kept && wanted(choice))
        .map((choice) => ({ choice, ...value(choice) })).filter((one) => typeof one.value === "number" && one.full > 0);
      if (!found.length) return heatCell(null);
      const best = found.reduce((one, other) => (other.value > one.value ? other : one));
      const share = best.value / best.full;
      return heatCell(share, percent(share), `${nameOf(best.choice)}: ${figure(best.full, 3)} \u2192 ${figure(best.value, 3)}`);
    };
    const whole = [group.name, columns.map((kept) => cell((choice) => ({ value: choice.value, full: choice.full }), kept))];
    const kinds = Object.entries(group.tasks).map(([task, scores]) => [`\u2003${task}`,
      columns.map((kept) => cell((choice) => ({ value: scores[choice.run], full: scores[group.full] }), kept))]);
    return [whole, ...kinds];
  });
  return rows.some(([, cells]) => cells.length) ? heatTable("task \\ kept", columns, rows) : null;
}

/** Mean score by where in the text the answer stands and by context length. */
function depthMap(group, run) {
  const lengths = group.depths[run];
  if (!lengths) return null;
  const columns = Object.keys(lengths).map(Number).sort((a, b) => a - b);
  const parts = lengths[columns[0]].length;
  const name = (part) => `${figure((100 * part) / parts, 0)} to ${figure((100 * (part + 1)) / parts, 0)}%`;
  return heatTable("depth \\ tokens", columns.map((length) => figure(length, 0)),
    Array.from({ length: parts }, (_, part) => [name(part), columns.map((length) => {
      const [score, count] = lengths[length][part];
      return heatCell(score, figure(score, 2), `${group.score}, ${count} samples`);
    })]));
}

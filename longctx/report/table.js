// The table of all rows. Cells are made once; filters hide rows, sorting moves them. Rows that are
// hidden cost no layout, so only so many are shown until more are asked for.

const ROWS_SHOWN = 200;

/** {node, show(isVisible), markChosen(isChosen)}: `choose(run)` is called for a row that is ticked. */
function runTable(data, choose) {
  const columns = tableColumns(data);
  const body = html("tbody");
  const lines = data.rows.map((row) => tableRow(row, data, columns, choose));
  body.append(...lines.map((line) => line.node));
  const more = html("button", { type: "button", click: () => { limit += ROWS_SHOWN; show(); } });
  let sorted = { column: null, descending: false };
  let visible = () => true;
  let limit = ROWS_SHOWN;

  const heads = columns.map((column) => html(
    "th",
    { scope: "col", class: `${column.text ? "" : "number"}${column.first ? " first" : ""}` },
    html("button", { type: "button", click: () => sort(column) }, column.label),
  ));

  function sort(column) {
    const descending = sorted.column === column ? !sorted.descending : false;
    sorted = { column, descending };
    lines.sort((a, b) => compareValues(column.value(a.row), column.value(b.row), descending));
    body.append(...lines.map((line) => line.node));
    heads.forEach((head, place) => {
      if (columns[place] === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    show();
  }

  function show() {
    let count = 0;
    for (const { row, node } of lines) {
      const fits = visible(row);
      count += fits;
      node.hidden = !fits || count > limit;
    }
    more.hidden = count <= limit;
    more.textContent = `Show ${figure(Math.min(ROWS_SHOWN, count - limit), 0)} more of ${figure(count, 0)} rows`;
  }

  return {
    node: html("div", {}, html("table", {}, html("thead", {}, html("tr", {}, ...heads)), body), more),
    show(isVisible) {
      visible = isVisible;
      limit = ROWS_SHOWN;
      show();
    },
    markChosen(isChosen) {
      for (const { row, node, box } of lines) {
        node.classList.toggle("chosen", isChosen(row.run));
        box.checked = isChosen(row.run);
      }
    },
  };
}

/** Rows without a value come last in either direction. */
function compareValues(a, b, descending) {
  if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
  const order = typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  return descending ? -order : order;
}

function tableColumns(data) {
  const ofRun = (key, label) => ({ key, label, text: true, value: (row) => data.runs[row.run][key] });
  const several = (key) => new Set(data.runs.map((run) => run[key])).size > 1;
  const measured = (key) => data.rows.some((row) => row.figures[key] !== undefined);
  return [
    { ...ofRun("short", "run"), first: true },
    ...["task", "model"].filter(several).map((key) => ofRun(key, key)),
    { key: "context_tokens", label: "context", decimals: 0, value: (row) => row.context_tokens },
    { key: "n", label: "samples", value: (row) => row.n, show: (row) => row.samples },
    ...data.columns.filter((column) => measured(column.key)).map((column) => ({
      ...column, measured: true, value: (row) => row.figures[column.key],
    })),
    ...["dtype", "device"].filter(several).map((key) => ofRun(key, key)),
  ];
}

function tableRow(row, data, columns, choose) {
  const run = data.runs[row.run];
  const box = html("input", { type: "checkbox", "aria-label": `choose ${run.label}`, change: () => choose(row.run) });
  const cells = columns.map((column) => {
    const value = column.value(row);
    if (column.first) {
      return html("th", { scope: "row", class: "first", title: `${run.label}\n${run.run_id}` },
        html("label", {}, box, ` ${value}`));
    }
    if (column.text) return html("td", { class: "value", title: value }, value);
    if (column.show) return html("td", { class: "number", title: row.missing || undefined }, column.show(row));
    const text = figure(value, column.decimals);
    if (!column.measured) return html("td", { class: "number" }, text);
    if (row.oom) return html("td", { class: "number oom" }, "out of memory");
    const interval = intervalText(row.figures[`${column.key}_ci95`], column.decimals);
    return html("td", { class: "number" }, text,
      interval ? html("span", { class: "interval" }, interval) : null,
      row.missing && value !== undefined ? html("span", { class: "partial", title: row.missing }, " \u2021") : null,
      column.key === "em" && row.guessing !== null
        ? html("div", { class: "guessing" }, `not told from guessing, ${row.guessing}`)
        : null);
  });
  return { row, box, node: html("tr", {}, ...cells) };
}

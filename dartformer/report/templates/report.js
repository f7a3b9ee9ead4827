"use strict";
// What the page does where JavaScript is on: draws the charts, sorts the tables, hands out the numbers.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const by = (id) => document.getElementById(id);
  const charts = new Map(data.charts.map((chart) => [chart.name, chart]));
  const views = new Map();
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const objects = ({columns, rows}) =>
    rows.map((row) => Object.fromEntries(columns.map((name, i) => [name, row[i]])));

  // ---- numbers as CSV -------------------------------------------------------------------------------------------
  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number" || typeof value === "boolean") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : String(value); // no spreadsheet is to run it
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  }
  function save(name, columns, rows) {
    const text = [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    link.download = name + ".csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    document.documentElement.dataset.saved = `${name} ${rows.length}`;
  }
  function numbers(name) {
    if (name === "genotype" || name.startsWith("genotype-")) return data[name];
    if (name === "trajectories") return search.all();
    return charts.get(name);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button.csv");
    if (!button) return;
    if (button.dataset.table) {
      const table = by(button.dataset.table);
      const lines = [...table.rows].map((row) => [...row.cells].map((one) => {
        const value = one.dataset.value;
        return value !== undefined && value !== "" && !isNaN(value) ? Number(value) : one.textContent.trim();
      }));
      save(button.dataset.table.replace("table-", ""), lines[0], lines.slice(1));
    } else {
      const found = numbers(button.dataset.csv);
      save(button.dataset.csv, found.columns, found.rows);
    }
  });

  // ---- tables ---------------------------------------------------------------------------------------------------
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => row.cells[i].dataset.value ?? row.cells[i].textContent;
        const rows = [...table.tBodies[0].rows].sort((a, b) => {
          const x = key(a), y = key(b);
          if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what is unknown stays last
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return up ? order : -order;
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // ---- charts ---------------------------------------------------------------------------------------------------
  function look() {
    const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    const ink = of("--ink"), soft = of("--soft"), line = of("--line");
    return {background: null, font: "system-ui, sans-serif", view: {stroke: null},
            axis: {labelColor: soft, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 400},
            legend: {columns: innerWidth < 560 ? 1 : 3, labelColor: ink, titleColor: soft, labelFontSize: 12, symbolStrokeWidth: 3}};
  }
  const drawing = new Map(); // one drawing of a chart after the other: two at once would leave one's controls dead
  function draw(name) {
    const made = (drawing.get(name) ?? Promise.resolve()).catch(() => {}).then(() => embed(name));
    drawing.set(name, made);
    return made;
  }
  const begin = (name) => drawing.get(name) ?? draw(name);
  async function embed(name) {
    const place = document.querySelector(`[data-chart="${name}"]`), chart = charts.get(name);
    if (!place || !chart) return;
    const rows = rowsOf[name] ? rowsOf[name]() : objects(chart);
    const spec = {$schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container",
                  autosize: {type: "fit-x", contains: "padding"}, data: {name: "rows", values: rows}, ...chart.spec};
    const kept = views.get(name), before = {};
    if (kept) {
      for (const one of chart.spec.params ?? []) if (!one.select) before[one.name] = kept.signal(one.name);
      kept.finalize();
    }
    const made = await vegaEmbed(place, spec, {actions: false, ast: true, logLevel: 1, config: look(),
                                               renderer: rows.length > 1500 ? "canvas" : "svg"});
    for (const [signal, value] of Object.entries(before)) made.view.signal(signal, value);
    views.set(name, made.view);
    await (after[name] ? after[name](made.view) : made.view.runAsync());
    for (const box of place.querySelectorAll(".vega-bind")) { // names for those who hear them
      const control = box.querySelector("select, input"), label = box.querySelector(".vega-bind-name");
      if (control && label) control.setAttribute("aria-label", label.textContent.replace(/:\s*$/, ""));
    }
    place.dataset.drawn = "yes";
  }
  async function show(name, rows) {
    const view = views.get(name);
    if (view) await view.data("rows", rows).runAsync();
  }

  // ---- the search, place by place --------------------------------------------------------------------------------
  const search = data.trajectories && (() => {
    const given = data.trajectories, bytes = Uint8Array.from(atob(given.data), (sign) => sign.charCodeAt(0));
    const words = new DataView(bytes.buffer), [seeds, steps, rows, columns, k] = given.shape;
    const at = (s, t, r, c, i) => words.getUint16(2 * ((((s * steps + t) * rows + r) * columns + c) * k + i), true) / 65535;
    const number = (id) => (by(id) ? Number(by(id).value) : 0);
    const step = () => number("t-step");
    const digits = (x) => Math.round(x * 1e4) / 1e4;
    return {
      given,
      lines() {
        const s = number("t-seed"), r = number("t-layer"), c = number("t-head"), found = [];
        given.steps.forEach((n, t) => {
          for (let i = 0; i < k; i++) found.push({step: n, attention: given.candidates[i], weight: digits(at(s, t, r, c, i))});
        });
        return found;
      },
      cells() {
        const s = number("t-seed"), t = step(), found = [];
        for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
          let best = 0;
          for (let i = 1; i < k; i++) if (at(s, t, r, c, i) > at(s, t, r, c, best)) best = i;
          found.push({layer: r, head: columns > 1 ? c : "all", attention: given.candidates[best], weight: digits(at(s, t, r, c, best))});
        }
        return found;
      },
      words() {
        const s = number("t-seed"), t = step(), r = number("t-layer"), c = number("t-head");
        const each = given.candidates.map((name, i) => [at(s, t, r, c, i), name]).sort((a, b) => b[0] - a[0]);
        return `At step ${given.steps[t]}: ` + each.map(([w, name]) => `${name} ${w.toFixed(2)}`).join(", ") + ".";
      },
      all() {
        const found = [];
        for (let s = 0; s < seeds; s++) for (let t = 0; t < steps; t++) for (let r = 0; r < rows; r++)
          for (let c = 0; c < columns; c++) for (let i = 0; i < k; i++)
            found.push([given.seeds[s], given.steps[t], rows > 1 ? r : "all", columns > 1 ? c : "all", given.candidates[i], digits(at(s, t, r, c, i))]);
        return {columns: ["seed", "step", "layer", "head", "attention", "weight"], rows: found};
      },
      now: () => given.steps[step()],
    };
  })();

  // ---- attention maps -------------------------------------------------------------------------------------------
  const maps = data.attention && (() => {
    const given = data.attention, decoded = new Map();
    const bytes = (e) => {
      if (!decoded.has(e)) decoded.set(e, Int8Array.from(atob(given.examples[e].maps.data), (sign) => sign.charCodeAt(0)));
      return decoded.get(e);
    };
    return {
      rows() {
        const e = Number(by("a-example").value), l = Number(by("a-layer").value), h = Number(by("a-head").value);
        const one = given.examples[e], n = one.tokens.length, scale = one.maps.scale[l][h], found = [], all = bytes(e);
        const name = (i) => i + " " + one.tokens[i]; // the same word may occur twice
        const answer = one.label === undefined ? "" : ` Label: ${one.label}; the model's answer: ${one.answer}.`;
        by("a-words").textContent = one.text + "." + answer + (scale ? "" : " This head's attention has no weights to show.");
        for (let q = 0; q < n; q++) for (let k = 0; k < n; k++) {
          const value = all[((l * given.heads.length + h) * n + q) * n + k] * scale / 127;
          found.push({query: name(q), key: name(k), weight: Math.round(value * 1e4) / 1e4});
        }
        const chart = charts.get("attention");
        chart.columns = ["example", "layer", "head", "query", "query_token", "key", "key_token", "weight"];
        chart.rows = found.map((one, i) => [e, given.layers[l], given.heads[h], Math.floor(i / n), given.examples[e].tokens[Math.floor(i / n)], i % n, given.examples[e].tokens[i % n], one.weight]);
        return found;
      },
    };
  })();

  const rowsOf = {trajectories: () => search.lines(), winners: () => search.cells(), attention: () => maps.rows()};
  const after = {trajectories: (view) => { by("t-words").textContent = search.words(); return view.signal("now", search.now()).runAsync(); }};

  async function step() {
    by("t-now").textContent = search.now();
    by("t-words").textContent = search.words();
    const view = views.get("trajectories");
    if (view) await view.signal("now", search.now()).runAsync();
    keepWinners();
    await show("winners", search.cells());
  }
  function keepWinners() {
    const chart = charts.get("winners");
    if (chart) chart.rows = search.cells().map((one) => chart.columns.map((name) => one[name]));
  }
  if (search) {
    keepWinners();
    by("t-step").addEventListener("input", step);
    for (const id of ["t-seed", "t-layer", "t-head"]) by(id)?.addEventListener("change", async () => {
      await show("trajectories", search.lines());
      await step();
    });
  }
  if (maps) {
    maps.rows();
    for (const id of ["a-example", "a-layer", "a-head"]) by(id).addEventListener("change", () =>
      id === "a-example" ? (maps.rows(), draw("attention")) : show("attention", maps.rows()));
  }

  // Charts are drawn as they come near the window, so that a long page opens at once; the rest when there is nothing
  // else to do, so that they are there when the page is printed or captured.
  const seen = new IntersectionObserver((entries) => {
    for (const one of entries) if (one.isIntersecting) { seen.unobserve(one.target); begin(one.target.dataset.chart); }
  }, {rootMargin: "300px"});
  for (const place of document.querySelectorAll("[data-chart]")) seen.observe(place);
  const redraw = () => Promise.all([...views.keys()].map(draw));
  dark.addEventListener("change", redraw);
  const idle = window.requestIdleCallback ?? ((task) => setTimeout(task, 50));
  const rest = () => {
    const name = [...charts.keys()].find((one) => !drawing.has(one));
    if (name !== undefined) begin(name).finally(() => idle(rest));
  };
  addEventListener("load", () => idle(rest));
  window.dartformerReport = {begin, views, charts, ready: true};

  // ---- served while a run is under way ---------------------------------------------------------------------------
  if (by("live")) {
    const words = by("live").querySelector("[role=status]"), paused = by("paused");
    paused.checked = sessionStorage.getItem("paused") === "yes";
    paused.addEventListener("change", () => sessionStorage.setItem("paused", paused.checked ? "yes" : "no"));
    let version = null, touched = -Infinity; // a page in somebody's hands is not taken away
    for (const kind of ["pointerdown", "keydown", "input", "wheel"]) addEventListener(kind, () => { touched = performance.now(); });
    setInterval(async () => {
      if (paused.checked) { words.textContent = "Live, but paused"; return; }
      try {
        const answer = await fetch("version");
        if (!answer.ok) return;
        const now = await answer.text();
        if (version !== null && now !== version && performance.now() - touched > 10000) location.reload();
        version ??= now;
        words.textContent = "Live: refreshed whenever the run writes something";
      } catch { words.textContent = "The server has stopped"; }
    }, 2000);
  }
})();

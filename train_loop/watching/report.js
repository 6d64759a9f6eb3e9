// The plots are plotly's. That they move together, the values at the pointer and the table of runs are made here.
'use strict';
const all = (selector) => [...document.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);
const nonce = document.currentScript.nonce;
const isTouched = matchMedia('(pointer: coarse)').matches;
const state = { axis: 'step', range: null, place: null, smoothing: 0, off: new Set(), column: 0, direction: 1 };
let data = JSON.parse(byId('data').textContent);
let panels = [];

async function start() {
  const packed = Uint8Array.from(atob(byId('plotly').textContent), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'));
  const textContent = await new Response(stream).text();
  document.head.append(Object.assign(document.createElement('script'), { nonce, textContent }));
  document.documentElement.classList.add('scripted');
  panels = all('figure').map(preparePanel);
  for (const input of all('[name=axis]')) input.onchange = () => { state.axis = input.value; state.place = null; zoom(null); };
  byId('smoothing').oninput = (event) => { state.smoothing = Number(event.target.value); draw(); };
  byId('unzoom').onclick = () => zoom(null);
  matchMedia('(prefers-color-scheme: dark)').onchange = draw;
  prepareTable();
  draw();
}

function preparePanel(figure, i) {
  const [plot, button] = ['.plot', 'button'].map((selector) => figure.querySelector(selector));
  const panel = { figure, plot, button, range: null, isLog: data.panels[i].y_axis === 'log', curves: [] };
  button.onclick = () => { panel.isLog = !panel.isLog; panel.range = null; draw(); };
  const pointed = ({ clientX }) => {
    const { xaxis } = plot._fullLayout;
    point(xaxis.p2d(clientX - plot.getBoundingClientRect().left - xaxis._offset));
  };
  for (const type of ['pointermove', 'pointerdown']) plot.addEventListener(type, pointed, true); // before plotly's own
  plot.onpointerleave = (event) => event.pointerType === 'touch' || point(null); // a finger leaves what it touched
  plot.replaceChildren(); // the picture without scripts
  const doubleClick = isTouched ? false : 'autosize'; // to plotly, one touch is two clicks
  Plotly.newPlot(plot, [], {}, { displayModeBar: false, responsive: true, showTips: false, doubleClick });
  plot.on('plotly_relayout', (change) => moved(panel, change));
  return panel;
}

function draw() {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(`--${name}`).trim();
  const ends = data.runs.flatMap((columns) => [columns[state.axis].at(-1) ?? 0, columns[`eval_${state.axis}`].at(-1) ?? 0]);
  const range = state.range ?? [0, 1.01 * Math.max(...ends) || 1];
  const axis = { gridcolor: colour('line'), zeroline: false, exponentformat: 'SI' };
  for (const [i, panel] of panels.entries()) {
    const { names, y_axis: form } = data.panels[i];
    panel.curves = names.flatMap((name) => data.runs.map((_, run) => curve(run, name, range))).filter(Boolean);
    const traces = panel.curves.flatMap(({ run, name, x, y, raw }) => {
      const [hue, dash] = data.styles[run];
      const line = { color: colour(`run-${hue}`), dash, width: name === names[0] ? 1.4 : 2.4 };
      const hasMarks = name.startsWith('eval_') || x.length === 1;
      const trace = { x, y, line, mode: hasMarks ? 'lines+markers' : 'lines', connectgaps: true, marker: { size: 5 }, meta: { run, opacity: 1 } };
      return raw === y ? [trace] : [{ ...trace, y: raw, opacity: 0.25, meta: { run, opacity: 0.25 } }, trace];
    });
    Plotly.react(panel.plot, traces, {
      xaxis: { ...axis, range },
      yaxis: { ...axis, type: panel.isLog ? 'log' : 'linear', range: panel.range, tickformat: form === 'percent' ? '.2~%' : '' },
      dragmode: isTouched ? false : 'zoom', // a finger scrolls
      hovermode: false,
      showlegend: false,
      height: 230,
      margin: { l: 48, r: 12, t: 6, b: 26 },
      font: { color: colour('muted'), size: 11 },
      paper_bgcolor: 'transparent',
      plot_bgcolor: 'transparent',
    });
    panel.button.setAttribute('aria-pressed', panel.isLog);
  }
  point(state.place);
}

// A run's curve within the range and one row to each side of it, because the other axis fits what it is given.
function curve(run, name, [left, right]) {
  const values = data.runs[run][name];
  if (state.off.has(run) || !values) return null;
  const isHeldOut = name.startsWith('eval_');
  const places = data.runs[run][(isHeldOut ? 'eval_' : '') + state.axis];
  const rows = [...places.keys()].filter((row) => values[row] !== null);
  const x = rows.map((row) => places[row]);
  const raw = rows.map((row) => values[row]);
  const seen = [...x.keys()].filter((k) => !(x[k + 1] < left) && !(x[k - 1] > right));
  const [first, end] = [seen[0] ?? 0, (seen.at(-1) ?? -1) + 1];
  const cut = raw.slice(first, end);
  const isExact = isHeldOut || name.endsWith('learning_rate');
  const y = isExact || !state.smoothing ? cut : smooth(raw).slice(first, end);
  return { run, name, x: x.slice(first, end), y, raw: cut };
}

// The exponential mean of the rows so far, without a pull towards 0 at its beginning.
function smooth(values) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    sum = state.smoothing * sum + (1 - state.smoothing) * value;
    weight = state.smoothing * weight + (1 - state.smoothing);
    return sum / weight;
  });
}

function zoom(range) {
  state.range = range;
  for (const panel of panels) panel.range = null;
  draw();
}

// Somebody dragged across a panel, or clicked it twice to see all.
function moved(panel, change) {
  if (change['xaxis.autorange']) return zoom(null);
  const range = (name) => [0, 1].map((end) => change[`${name}.range[${end}]`]);
  if (range('yaxis')[0] !== undefined) panel.range = range('yaxis');
  if (range('xaxis')[0] !== undefined) state.range = range('xaxis');
  return draw();
}

// Show each curve's value in the row nearest to a place on the lower axis, or the last one where there is no place.
function point(place) {
  state.place = place;
  for (const [i, { figure, plot, curves }] of panels.entries()) {
    const { xaxis, _size: size } = plot._fullLayout;
    const left = place === null ? -1 : xaxis.d2p(place);
    const line = figure.querySelector('.crosshair');
    line.hidden = left < 0 || left > xaxis._length;
    line.textContent = shown(place ?? 0);
    Object.assign(line.style, { left: `${left + size.l}px`, top: `${size.t}px`, height: `${size.h}px` });
    const texts = new Map();
    for (const { run, x, y } of curves) {
      const text = shown(y[nearest(x, place ?? Infinity)], data.panels[i].y_axis);
      texts.set(run, [...(texts.get(run) ?? []), text]);
    }
    figure.querySelector('.values').replaceChildren(...[...texts].map(([run, parts]) => value(run, parts.join(' | '))));
  }
}

function nearest(places, place) {
  const next = places.findIndex((at) => at >= place);
  if (next < 0) return places.length - 1;
  return next > 0 && place - places[next - 1] < places[next] - place ? next - 1 : next;
}

function shown(number, form) {
  if (number === undefined) return '–';
  if (form === 'percent') return `${(100 * number).toFixed(1)}%`;
  if (number && Math.abs(number) < 0.001) return number.toExponential(2);
  return number >= 10000 ? Math.round(number).toLocaleString('en') : String(Number(number.toPrecision(4)));
}

function value(run, text) {
  const element = Object.assign(document.createElement('span'), { title: data.names[run] });
  element.append(Object.assign(document.createElement('b'), { textContent: text }));
  if (data.runs.length > 1) {
    const className = `swatch run-${data.styles[run][0]} ${data.styles[run][1]}`;
    element.prepend(Object.assign(document.createElement('i'), { className }));
    element.append(` ${data.names[run]}`);
    fadeOthers(element, run);
  }
  return element;
}

// The other runs fade while the pointer is on the row or a value of this one.
function fadeOthers(element, run) {
  const restyle = (opacity) => {
    for (const { plot } of panels) Plotly.restyle(plot, { opacity: plot.data.map(({ meta }) => opacity(meta)) });
  };
  element.onpointerenter = () => restyle((meta) => (meta.run === run ? meta.opacity : 0.1));
  element.onpointerleave = () => restyle((meta) => meta.opacity);
}

// The table is another one after each look at a run under way; what was chosen in it is in `state`.
function prepareTable() {
  for (const [column, button] of all('#runs thead button').entries()) {
    button.onclick = () => {
      state.direction = state.column === column ? -state.direction : 1;
      state.column = column;
      sort();
    };
  }
  for (const row of all('#runs tbody tr')) {
    const run = Number(row.dataset.run);
    const box = row.querySelector('input');
    box.checked = !state.off.has(run);
    box.onchange = () => { state.off[box.checked ? 'delete' : 'add'](run); draw(); };
    fadeOthers(row, run);
  }
  sort();
}

function sort() {
  const text = (row) => row.cells[state.column].textContent.trim();
  // "1,234", "25.0%", "0:02:30" and "1e-3" are numbers, but not in a run's name; what is none comes last.
  const key = (row) => (state.column && /^[\d-]*\d/.test(text(row))
    ? text(row).replaceAll(',', '').split(':').reduce((sum, part) => 60 * sum + parseFloat(part), 0) : NaN);
  const compare = (a, b) => Number.isNaN(key(a)) - Number.isNaN(key(b))
    || state.direction * (key(a) - key(b) || text(a).localeCompare(text(b), 'en', { numeric: true }));
  byId('runs')?.tBodies[0].append(...all('#runs tbody tr').sort(compare));
  for (const [column, head] of all('#runs thead th').entries()) {
    const order = state.direction > 0 ? 'ascending' : 'descending';
    head.setAttribute('aria-sort', column === state.column ? order : 'none');
  }
}

start();

// The plots under the rows, on the same time axis: the KV pool, the queue, memory of tool calls.

function drawGrid(c, view, height, colours) {
  c.fillStyle = colours.grid;
  for (const tick of timeTicks(view).ticks) c.fillRect(Math.round(view.x(tick)), 0, 1, height);
}

function drawAxis(canvas, view, colours) {
  const c = brush(canvas, view.width, 26);
  const { step, ticks } = timeTicks(view);
  c.font = `11px ${colours.font}`;
  c.fillStyle = colours.muted;
  c.textBaseline = "middle";
  c.textAlign = "center";
  for (const tick of ticks) {
    const x = view.x(tick);
    c.fillRect(Math.round(x), 21, 1, 5);
    c.fillText(tickLabel(tick, step), Math.min(x, view.width - 24), 11);
  }
  c.textAlign = "left";
  c.fillText("programs, by arrival", 6, 11);
}

// The samples that a plot must visit: those in view and one on either side.
function visibleRange(times, view) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < view.from) low = middle + 1;
    else high = middle;
  }
  let last = low;
  while (last < times.length && times[last] <= view.to) last++;
  return [Math.max(0, low - 1), Math.min(times.length - 1, last)];
}

function clipPlot(c, view, height) {
  c.beginPath();
  c.rect(GUTTER, 0, view.plot, height);
  c.clip();
}

// Fills below a step line: a sample holds until the next one.
function stepArea(c, view, times, values, range, y) {
  const [first, last] = range;
  c.beginPath();
  c.moveTo(view.x(times[first]), y(0));
  for (let at = first; at <= last; at++) {
    c.lineTo(view.x(times[at]), y(values[at]));
    if (at < last) c.lineTo(view.x(times[at + 1]), y(values[at]));
  }
  c.lineTo(view.x(times[last]), y(0));
  c.closePath();
}

function stepLine(c, view, times, values, range, y) {
  const [first, last] = range;
  c.beginPath();
  for (let at = first; at <= last; at++) {
    const x = view.x(times[at]);
    if (at === first) c.moveTo(x, y(values[at]));
    else c.lineTo(x, y(values[at]));
    if (at < last) c.lineTo(view.x(times[at + 1]), y(values[at]));
  }
  c.stroke();
}

function laneTitle(c, colours, title, top, bottom, height) {
  c.textAlign = "left";
  c.textBaseline = "middle";
  c.font = `600 12px ${colours.font}`;
  c.fillStyle = colours.ink;
  c.fillText(title, 6, 14);
  c.font = `11px ${colours.font}`;
  c.fillStyle = colours.muted;
  c.textAlign = "right";
  c.fillText(top, GUTTER - 8, 14);
  c.fillText(bottom, GUTTER - 8, height - 6);
}

function drawPool(canvas, view, colours, run) {
  const height = 116;
  const c = brush(canvas, view.width, height);
  drawGrid(c, view, height, colours);
  const kv = run.kv;
  let pool = Math.max(1, run.pool);
  let most = 1;
  for (let at = 0; at < kv.count; at++) {
    most = Math.max(most, kv.leased[at] + kv.cached[at]);
    pool = Math.max(pool, kv.leased[at] + kv.cached[at] + kv.free[at]);
  }
  // A pool that stays nearly empty would be a flat line: show the part that was used.
  const peak = most < pool * 0.4 ? most * 1.15 : pool;
  const top = peak < pool ? `${shortCount(peak)} of ${shortCount(pool)}` : shortCount(pool);
  laneTitle(c, colours, "KV pool", top, "0 tokens", height);
  if (!kv.count) return;
  const y = (value) => height - 2 - (value / peak) * (height - 10);
  const range = visibleRange(kv.time, view);
  const used = kv.leased.map((value, at) => value + kv.cached[at]);
  c.save();
  clipPlot(c, view, height);
  const all = used.map((value, at) => value + kv.free[at]);
  const layers = [["free", all], ["cached", used], ["leased", kv.leased], ["pinned", kv.pinned]];
  for (const [name, values] of layers) {
    c.fillStyle = colours.pool[name];
    stepArea(c, view, kv.time, values, range, y);
    c.fill();
  }
  c.restore();
}

function drawLoad(canvas, view, colours, run) {
  const height = 84;
  const c = brush(canvas, view.width, height);
  drawGrid(c, view, height, colours);
  const kv = run.kv;
  let peak = 1;
  for (let at = 0; at < kv.count; at++) peak = Math.max(peak, kv.running[at], kv.waiting[at]);
  laneTitle(c, colours, "Turns", String(peak), "0", height);
  if (!kv.count) return;
  const y = (value) => height - 3 - (value / peak) * (height - 12);
  const range = visibleRange(kv.time, view);
  c.save();
  clipPlot(c, view, height);
  c.globalAlpha = 0.22;
  c.fillStyle = colours.kinds[0];
  stepArea(c, view, kv.time, kv.waiting, range, y);
  c.fill();
  c.globalAlpha = 1;
  c.lineWidth = 1.5;
  for (const [values, colour] of [[kv.waiting, colours.kinds[0]], [kv.running, colours.kinds[1]]]) {
    c.strokeStyle = colour;
    stepLine(c, view, kv.time, values, range, y);
  }
  c.restore();
}

function drawMemory(canvas, view, colours, run) {
  const height = 96;
  canvas.parentElement.hidden = run.measured.length === 0;
  if (!run.measured.length) return;
  const c = brush(canvas, view.width, height);
  drawGrid(c, view, height, colours);
  let peak = 1;
  for (const tool of run.measured) peak = Math.max(peak, tool.memory);
  laneTitle(c, colours, "Tool memory", bytesText(peak), "0", height);
  c.save();
  clipPlot(c, view, height);
  c.fillStyle = colours.kinds[3];
  for (const tool of run.measured) {
    if (tool.end < view.from || tool.start > view.to) continue;
    const x = view.x(tool.start);
    const width = Math.max(1.5, view.x(tool.end) - x);
    const top = Math.max(2, (tool.memory / peak) * (height - 12));
    c.globalAlpha = 0.4;
    c.fillRect(x, height - 2 - top, width, top);
    c.globalAlpha = 1;
    c.fillRect(x, height - 2 - top, width, 2);
  }
  c.restore();
}

function pickSample(run, view, x) {
  const kv = run.kv;
  if (!kv.count || x < GUTTER) return null;
  const [first] = visibleRange(kv.time, { from: view.time(x), to: view.time(x) });
  const values = { type: "sample", time: kv.time[first] };
  for (const name of ["leased", "pinned", "cached", "free", "running", "waiting"]) {
    values[name] = kv[name][first];
  }
  return { item: values };
}

function pickMemory(run, view, x) {
  const slack = (3 / view.plot) * view.span;
  const time = view.time(x);
  let best = null;
  for (const tool of run.measured) {
    if (tool.start > time + slack) break;
    const inside = tool.end >= time - slack;
    if (inside && (!best || tool.memory > best.memory)) best = tool;
  }
  if (!best) return null;
  const lane = run.lanes[best.lane];
  return { program: run.programs[lane.program], lane, item: best, kind: 3 };
}

// The visible span of time, shared by every plot of the time line, and how times are written.

const GUTTER = 204;
const MARGIN = 14;

class View {
  constructor(end) {
    this.limit = end;
    this.from = 0;
    this.to = end;
    this.width = 1;
  }

  get span() { return this.to - this.from; }
  get plot() { return Math.max(1, this.width - GUTTER - MARGIN); }
  get isFitted() { return this.from <= 0 && this.to >= this.limit; }

  x(time) { return GUTTER + ((time - this.from) / this.span) * this.plot; }
  time(x) { return this.from + ((x - GUTTER) / this.plot) * this.span; }

  show(from, to) {
    const span = Math.min(Math.max(to - from, this.limit * 1e-6, 1e-3), this.limit);
    const start = Math.min(Math.max(from, 0), this.limit - span);
    this.from = start;
    this.to = start + span;
  }

  fit() { this.show(0, this.limit); }

  zoom(factor, center) {
    const at = center === undefined ? (this.from + this.to) / 2 : center;
    const span = Math.min(Math.max(this.span * factor, this.limit * 1e-6, 1e-3), this.limit);
    const share = (at - this.from) / this.span;
    this.show(at - share * span, at - share * span + span);
  }

  pan(seconds) { this.show(this.from + seconds, this.to + seconds); }

  resize(width) { this.width = width; }
}

const STEPS = [
  0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30,
  60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400,
];

function timeTicks(view) {
  const wanted = view.span / Math.max(2, view.plot / 96);
  let step = STEPS.find((candidate) => candidate >= wanted) || STEPS[STEPS.length - 1];
  while (step < wanted) step *= 2;
  const ticks = [];
  for (let n = Math.ceil(view.from / step - 1e-9); n * step <= view.to + 1e-9; n++) {
    ticks.push(n * step);
  }
  return { step, ticks };
}

function two(value) { return String(value).padStart(2, "0"); }

function tickLabel(time, step) {
  const whole = Math.round(time);
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor((whole % 3600) / 60);
  if (step >= 3600) return `${hours} h`;
  if (step >= 60) return hours ? `${hours} h ${two(minutes)}` : `${minutes} min`;
  if (step >= 1) {
    if (hours) return `${hours}:${two(minutes)}:${two(whole % 60)}`;
    return minutes ? `${minutes}:${two(whole % 60)}` : `${whole} s`;
  }
  return `${time.toFixed(Math.max(1, Math.ceil(-Math.log10(step))))} s`;
}

function spanText(time) {
  if (time === null) return "–";
  if (time < 0.0005) return "0 s";
  if (time < 1) return `${(time * 1000).toFixed(time < 0.01 ? 1 : 0)} ms`;
  if (time < 10) return `${time.toFixed(2)} s`;
  if (time < 120) return `${time.toFixed(1)} s`;
  if (time < 7200) return `${Math.floor(time / 60)} min ${Math.round(time % 60)} s`;
  return `${(time / 3600).toFixed(1)} h`;
}

function countText(value) { return value.toLocaleString("en-US"); }

function shortCount(value) {
  if (value >= 1e6) return `${+(value / 1e6).toFixed(2)} M`;
  return value >= 1e4 ? `${+(value / 1e3).toFixed(1)} k` : countText(Math.round(value));
}

function bytesText(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (bytes >= 1024 && power < units.length - 1) {
    bytes /= 1024;
    power++;
  }
  return `${bytes >= 100 || power === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${units[power]}`;
}

// The first piece of `segs` that can still reach `time`.
function firstReaching(segs, time) {
  let low = 0;
  let high = segs.reach.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (segs.reach[middle] < time) low = middle + 1;
    else high = middle;
  }
  return low;
}

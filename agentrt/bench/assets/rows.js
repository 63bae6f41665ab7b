// One row per program: turns by phase, tool calls, and pins as a strip along the row's foot.

const PIN_COLOURS = ["pin", "pin", "broken", "pin"];

// Prepares a canvas for drawing in CSS pixels and clears it.
function brush(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
  }
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  const c = canvas.getContext("2d");
  c.setTransform(scale, 0, 0, scale, 0, 0);
  c.clearRect(0, 0, width, height);
  return c;
}

// Narrower pieces than this many pixels are gathered into cells.
const CELL = 4;

// Visits the visible pieces: one(x, width, kind) for each that is wide enough to be seen, and
// many(x, width, cover) for a cell of narrower ones, with the seconds that each kind covers of it.
// Cells are cut at fixed times, so that they do not flicker while panning.
function sweep(segs, view, one, many) {
  const left = GUTTER;
  const right = view.width - MARGIN;
  const slice = (CELL / view.plot) * view.span;
  const cover = new Float64Array(4);
  let cell = null;
  const flush = () => {
    if (!cell) return;
    many(cell.from, Math.max(0.75, cell.to - cell.from), cover);
    cover.fill(0);
    cell = null;
  };
  for (let at = firstReaching(segs, view.from); at < segs.start.length; at++) {
    if (segs.start[at] > view.to) break;
    const x0 = Math.max(left, view.x(segs.start[at]));
    const x1 = Math.min(right, view.x(segs.end[at]));
    if (x1 < x0) continue;
    if (x1 - x0 >= CELL) {
      flush();
      one(x0, x1 - x0, segs.kind[at]);
      continue;
    }
    const number = Math.floor(segs.start[at] / slice);
    if (cell && (cell.number !== number || x0 - cell.to > 1)) flush();
    if (!cell) cell = { number, from: x0, to: x1 };
    cell.to = Math.max(cell.to, x1);
    cover[segs.kind[at]] += Math.max(x1 - x0, 1e-4);
  }
  flush();
}

// A cell's kinds one above the other, each as high as its share.
function paintShares(c, colours, x, width, y, height, cover) {
  const total = cover[0] + cover[1] + cover[2] + cover[3];
  let top = y;
  for (let kind = 0; kind < 4; kind++) {
    const share = (cover[kind] / total) * height;
    if (share <= 0) continue;
    c.fillStyle = colours.kinds[kind];
    c.fillRect(x, top, width, share);
    top += share;
  }
}

class Rows {
  constructor(box, canvas, spacer) {
    this.box = box;
    this.canvas = canvas;
    this.spacer = spacer;
    this.height = 14;
    this.hovered = -1;
    this.order = [];
    this.activeOnly = false;
  }

  load(run) {
    this.run = run;
    this.hovered = -1;
    this.order = run.programs.map((_, at) => at);
  }

  // With `activeOnly`, leaves out the programs that are not alive in the visible span.
  arrange(view) {
    const before = this.order.length;
    const programs = this.run.programs;
    const alive = (at) => programs[at].finished >= view.from && programs[at].arrival <= view.to;
    this.order = programs.map((_, at) => at).filter((at) => !this.activeOnly || alive(at));
    if (this.order.length !== before) this.resize();
  }

  setRowHeight(height) {
    this.height = height;
    this.resize();
  }

  resize() {
    const total = Math.max(1, this.order.length) * this.height;
    this.visible = Math.min(total, Math.max(120, Math.min(620, window.innerHeight * 0.62)));
    this.box.style.height = `${this.visible + 2}px`;
    this.spacer.style.height = `${total - this.visible}px`;
  }

  draw(view, colours) {
    this.arrange(view);
    const c = brush(this.canvas, view.width, this.visible);
    const scroll = this.box.scrollTop;
    const first = Math.max(0, Math.floor(scroll / this.height));
    const last = Math.min(this.order.length, Math.ceil((scroll + this.visible) / this.height));
    drawGrid(c, view, this.visible, colours);
    for (let at = first; at < last; at++) this.drawRow(c, view, colours, at, at * this.height - scroll);
  }

  drawRow(c, view, colours, at, y) {
    const program = this.run.programs[this.order[at]];
    if (at === this.hovered) {
      c.fillStyle = colours.hover;
      c.fillRect(0, y, view.width, this.height);
    }
    if (at % Math.ceil(11 / this.height) === 0) this.drawLabel(c, colours, program, y);
    const pad = this.height >= 12 ? 2 : this.height >= 6 ? 1 : 0.5;
    this.drawLife(c, view, colours, program, y);
    const lane = (this.height - 2 * pad) / Math.max(1, program.lanes.length);
    program.lanes.forEach((number, order) => {
      this.drawLane(c, view, colours, this.run.lanes[number], y + pad + order * lane, lane);
    });
  }

  drawLabel(c, colours, program, y) {
    c.font = `${this.height < 13 ? 10 : 12}px ${colours.font}`;
    c.textBaseline = "middle";
    c.textAlign = "left";
    const bad = ["unresolved", "failed", "cancelled"].includes(program.outcome);
    c.fillStyle = bad ? colours.broken : colours.muted;
    const room = GUTTER - 22;
    c.fillText(fitText(c, program.name, room), 6, Math.max(6, y + this.height / 2 + 0.5));
  }

  // A hairline from arrival to the end: what is on the line but has no bar is idle time.
  drawLife(c, view, colours, program, y) {
    const x0 = Math.max(GUTTER, view.x(program.arrival));
    const x1 = Math.min(view.width - MARGIN, view.x(program.finished));
    if (x1 <= x0) return;
    c.fillStyle = colours.life;
    c.fillRect(x0, Math.round(y + this.height / 2), x1 - x0, 1);
  }

  drawLane(c, view, colours, lane, y, height) {
    const strip = height >= 5 ? Math.max(2, Math.round(height * 0.2)) : 0;
    const gap = height >= 12 ? 1.5 : strip ? 0.5 : 0;
    const body = height - strip - gap;
    const bar = (x, width, kind) => {
      const inset = kind === 3 && body >= 6 ? body * 0.2 : 0;
      c.fillStyle = colours.kinds[kind];
      // A seam keeps neighbouring turns apart where there is room for one.
      c.fillRect(x, y + inset, width > 5 ? width - 0.75 : width, body - 2 * inset);
      if (kind === 0 && width > 6 && body >= 6) hatch(c, x, y, width - 0.75, body, colours);
    };
    sweep(lane.bars, view, bar, (x, width, cover) => {
      paintShares(c, colours, x, width, y, body, cover);
    });
    this.drawEnds(c, view, colours, lane, y, body);
    if (!strip) return;
    const mark = (x, width, kind) => {
      c.fillStyle = colours[PIN_COLOURS[kind]];
      c.globalAlpha = kind === 1 ? 0.45 : 1;
      c.fillRect(x, y + height - strip, width > CELL ? width - 1 : width, strip);
      c.globalAlpha = 1;
    };
    // Of several short pins, a broken one is what a reader must not miss.
    sweep(lane.marks, view, mark, (x, width, cover) => {
      mark(x, width, cover[2] > 0 ? 2 : cover[1] > cover[0] + cover[3] ? 1 : 0);
    });
  }

  // Turns that were cancelled or failed, and tools that failed, end in a red cap.
  drawEnds(c, view, colours, lane, y, body) {
    if (body < 6) return;
    c.fillStyle = colours.broken;
    const cap = (item) => {
      const x = view.x(item.end);
      if (x >= GUTTER && x <= view.width - MARGIN) c.fillRect(x - 2, y, 2, body);
    };
    lane.turns.forEach((turn) => turn.reason !== "stop" && turn.reason !== "length" && cap(turn));
    lane.tools.forEach((tool) => tool.exit !== null && tool.exit !== 0 && cap(tool));
  }

  // What lies under a point of the canvas: {program, lane, item, kind}.
  pick(view, x, y) {
    const place = y + this.box.scrollTop;
    const at = Math.floor(place / this.height);
    const program = this.run.programs[this.order[at]];
    this.hovered = program ? at : -1;
    if (!program || x < GUTTER) return program ? { program } : null;
    const share = (place - at * this.height) / this.height;
    const count = program.lanes.length;
    if (!count) return { program };
    const order = Math.min(count - 1, Math.floor(share * count));
    const lane = this.run.lanes[program.lanes[order]];
    const low = share * count - order > 0.76;
    const piece = (low && nearest(lane.marks, view, x)) || nearest(lane.bars, view, x)
      || nearest(lane.marks, view, x);
    return { program, lane, ...piece };
  }
}

// The piece at x, or the closest within two pixels; of several, the shortest.
function nearest(segs, view, x) {
  const slack = (2 / view.plot) * view.span;
  const time = view.time(x);
  let best = null;
  let score = Infinity;
  for (let at = firstReaching(segs, time - slack); at < segs.start.length; at++) {
    if (segs.start[at] > time + slack) break;
    if (segs.end[at] < time - slack) continue;
    const away = Math.max(segs.start[at] - time, time - segs.end[at], 0);
    const rank = away * 1e3 + (segs.end[at] - segs.start[at]);
    if (rank < score) {
      score = rank;
      best = { item: segs.item[at], kind: segs.kind[at] };
    }
  }
  return best;
}

function fitText(c, text, room) {
  if (c.measureText(text).width <= room) return text;
  let keep = text.length;
  while (keep > 1 && c.measureText(`${text.slice(0, keep)}…`).width > room) keep--;
  return `${text.slice(0, keep)}…`;
}

function hatch(c, x, y, width, height, colours) {
  c.save();
  c.beginPath();
  c.rect(x, y, width, height);
  c.clip();
  c.strokeStyle = colours.hatch;
  c.lineWidth = 1;
  c.beginPath();
  for (let at = x - height - ((x - height) % 6); at < x + width; at += 6) {
    c.moveTo(at, y + height);
    c.lineTo(at + height, y);
  }
  c.stroke();
  c.restore();
}

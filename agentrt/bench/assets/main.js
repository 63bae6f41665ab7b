// Wires the page: which run is shown, zoom and pan, hover, theme, and the address's hash.

function palette() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    font: getComputedStyle(document.body).fontFamily,
    ink: read("ink"), muted: read("muted"), grid: read("grid"), hover: read("hover"),
    life: read("life"), pin: read("pin"), broken: read("broken"), hatch: read("hatch"),
    kinds: KINDS.map(read),
    pool: { pinned: read("pinned"), leased: read("leased"), cached: read("cached"), free: read("free") },
  };
}

class Timeline {
  constructor(root, index) {
    const find = (name) => root.querySelector(`[data-part="${name}"]`);
    this.root = root;
    this.index = index;
    this.cache = new Map();
    this.stage = find("stage");
    this.cursor = find("cursor");
    this.tip = document.getElementById("tip");
    this.canvases = { axis: find("axis"), pool: find("pool"), load: find("load"), memory: find("memory") };
    this.rows = new Rows(find("rows"), find("canvas"), find("spacer"));
    this.density = find("density");
    this.active = find("active");
    this.seed = find("seed");
    this.policies = [...root.querySelectorAll("[data-policy]")];
    this.pending = false;
    this.colours = palette();
  }

  // Shows the run of a policy and seed; keeps the visible span if the reader had zoomed.
  select(policy, seed) {
    const entries = this.index.runs.filter((entry) => entry.policy === policy);
    const entry = entries.find((candidate) => candidate.seed === seed) || entries[0];
    if (!entry) return;
    if (!this.cache.has(entry.id)) this.cache.set(entry.id, decodeRun(readJson(entry.id)));
    this.run = this.cache.get(entry.id);
    const before = this.view;
    this.view = new View(this.run.end);
    if (before && !before.isFitted) this.view.show(before.from, before.to);
    this.rows.load(this.run);
    this.policies.forEach((button) => {
      button.setAttribute("aria-pressed", String(button.dataset.policy === entry.policy));
    });
    if (this.seed) this.seed.value = String(entry.seed);
    this.layout();
  }

  layout() {
    const count = Math.max(1, this.run.programs.length);
    const fit = Math.floor(Math.min(600, window.innerHeight * 0.6) / count);
    const heights = { fit: Math.max(3, Math.min(38, fit)), normal: 14, tall: 34 };
    const choice = this.density.value === "auto" ? (fit >= 4 ? "fit" : "normal") : this.density.value;
    this.view.resize(this.stage.clientWidth);
    this.rows.setRowHeight(heights[choice]);
    this.redraw();
  }

  redraw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.paint();
    });
  }

  paint() {
    const { view, colours, run } = this;
    drawAxis(this.canvases.axis, view, colours);
    this.rows.draw(view, colours);
    drawPool(this.canvases.pool, view, colours, run);
    drawLoad(this.canvases.load, view, colours, run);
    drawMemory(this.canvases.memory, view, colours, run);
  }

  // Which plot a pointer event is over, and what it points at there.
  pick(event) {
    const x = event.clientX - this.stage.getBoundingClientRect().left;
    const over = event.target;
    if (over === this.rows.canvas) {
      const y = event.clientY - over.getBoundingClientRect().top;
      return { x, hit: this.rows.pick(this.view, x, y) };
    }
    if (over === this.canvases.memory) return { x, hit: pickMemory(this.run, this.view, x) };
    if (over === this.canvases.pool || over === this.canvases.load) {
      return { x, hit: pickSample(this.run, this.view, x) };
    }
    return { x, hit: null };
  }

  hover(event) {
    const before = this.rows.hovered;
    this.rows.hovered = -1;
    const { x, hit } = this.pick(event);
    this.cursor.hidden = x < GUTTER || x > this.view.width - MARGIN;
    this.cursor.style.left = `${x}px`;
    this.cursor.dataset.time = spanText(Math.max(0, this.view.time(x)));
    if (hit) {
      fillTip(this.tip, hit);
      placeTip(this.tip, event.clientX, event.clientY);
    } else this.tip.hidden = true;
    if (before !== this.rows.hovered) this.redraw();
  }

  leave() {
    this.tip.hidden = true;
    this.cursor.hidden = true;
    if (this.rows.hovered < 0) return;
    this.rows.hovered = -1;
    this.redraw();
  }

  step(action) {
    const view = this.view;
    const actions = {
      in: () => view.zoom(0.5), out: () => view.zoom(2), fit: () => view.fit(),
      left: () => view.pan(-view.span * 0.25), right: () => view.pan(view.span * 0.25),
    };
    actions[action]();
    this.redraw();
  }

  // Plain wheel scrolls the page unless the plot has the focus; with Ctrl (or a pinch) it zooms.
  wheel(event) {
    const focused = this.stage.contains(document.activeElement);
    const x = event.clientX - this.stage.getBoundingClientRect().left;
    const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
    if (sideways) {
      const delta = event.deltaX || event.deltaY;
      this.view.pan((delta / this.view.plot) * this.view.span);
    } else if (event.ctrlKey || event.metaKey || focused) {
      const lines = event.deltaMode === 1 ? 33 : 1;
      const power = Math.max(-60, Math.min(60, event.deltaY * lines)) / 240;
      this.view.zoom(2 ** power, this.view.time(Math.max(GUTTER, x)));
    } else return;
    event.preventDefault();
    this.redraw();
  }

  drag(event) {
    if (!this.grip) return this.hover(event);
    const [x, y] = [event.clientX - this.grip.x, event.clientY - this.grip.y];
    this.view.show(
      this.grip.from - (x / this.view.plot) * this.view.span,
      this.grip.to - (x / this.view.plot) * this.view.span,
    );
    if (event.pointerType === "mouse") this.rows.box.scrollTop = this.grip.scroll - y;
    this.tip.hidden = true;
    return this.redraw();
  }

  grab(event) {
    if (event.button !== 0 || event.target.tagName !== "CANVAS") return;
    const { from, to } = this.view;
    this.grip = { x: event.clientX, y: event.clientY, from, to, scroll: this.rows.box.scrollTop };
    this.stage.setPointerCapture(event.pointerId);
    this.stage.classList.add("dragging");
    this.rows.box.focus({ preventScroll: true });
  }

  release() {
    this.grip = null;
    this.stage.classList.remove("dragging");
  }

  key(event) {
    const keys = { ArrowLeft: "left", ArrowRight: "right", "+": "in", "=": "in", "-": "out", 0: "fit" };
    if (event.key === "Escape") document.activeElement.blur();
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.step(keys[event.key]);
  }

  listen() {
    const on = (target, name, action, options) => target.addEventListener(name, action, options);
    on(this.stage, "pointermove", (event) => this.drag(event));
    on(this.stage, "pointerdown", (event) => this.grab(event));
    on(this.stage, "pointerup", () => this.release());
    on(this.stage, "pointercancel", () => this.release());
    on(this.stage, "pointerleave", () => this.leave());
    on(this.stage, "wheel", (event) => this.wheel(event), { passive: false });
    on(this.stage, "keydown", (event) => this.key(event));
    on(this.stage, "dblclick", (event) => {
      const x = event.clientX - this.stage.getBoundingClientRect().left;
      this.view.zoom(0.4, this.view.time(Math.max(GUTTER, x)));
      this.redraw();
    });
    on(this.rows.box, "scroll", () => this.redraw());
    on(this.density, "change", () => this.layout());
    on(this.active, "change", () => {
      this.rows.activeOnly = this.active.checked;
      this.redraw();
    });
    on(window, "resize", () => this.layout());
    if (this.seed) on(this.seed, "change", () => this.select(this.run.policy, Number(this.seed.value)));
    this.policies.forEach((button) => {
      on(button, "click", () => this.select(button.dataset.policy, this.run.seed));
    });
    this.root.querySelectorAll("[data-step]").forEach((button) => {
      on(button, "click", () => this.step(button.dataset.step));
    });
  }
}

function themeSwitch(changed) {
  const root = document.documentElement;
  const button = document.querySelector("[data-part=theme]");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    changed();
  });
  dark.addEventListener("change", changed);
}

function copyCommand() {
  const button = document.querySelector("[data-part=copy]");
  if (!button || !navigator.clipboard) return;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector("code").textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}

// #policy=…&seed=…&from=…&to=…&rows=…&theme=…: a link to one view of the page.
function start() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const root = document.documentElement;
  if (["light", "dark"].includes(hash.get("theme"))) root.dataset.theme = hash.get("theme");
  copyCommand();
  const index = readJson("index");
  const panel = document.getElementById("timeline");
  let timeline = null;
  if (panel && index && index.runs.length) {
    timeline = new Timeline(panel, index);
    const first = index.runs[index.selected];
    if (hash.has("rows")) timeline.density.value = hash.get("rows");
    timeline.select(hash.get("policy") || first.policy, Number(hash.get("seed") || first.seed));
    if (hash.has("to")) timeline.view.show(Number(hash.get("from") || 0), Number(hash.get("to")));
    timeline.listen();
    timeline.paint();
  }
  themeSwitch(() => {
    if (!timeline) return;
    timeline.colours = palette();
    timeline.redraw();
  });
  root.dataset.ready = "yes";
}

start();

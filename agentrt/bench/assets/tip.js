// The tooltip. All text goes in through textContent: nothing of a run is ever read as HTML.

const OUTCOME_NAMES = {
  handed_off: "handed off: the program came back to it",
  expired: "expired: its time to live ended first",
  broken: "broken: its pages were needed elsewhere",
  final: "final: the program ended",
};

function node(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function turnFacts(turn) {
  const share = turn.prompt ? ` (${Math.round((100 * turn.cached) / turn.prompt)} %)` : "";
  const facts = [
    ["submitted", `at ${spanText(turn.start)}`],
    ["queue", spanText(turn.queue)],
    ["prefill", spanText(turn.prefill)],
    ["decode", spanText(turn.decode)],
    ["prompt", `${countText(turn.prompt)} tokens`],
    ["cached", `${countText(turn.cached)}${share}`],
    ["prefilled", `${countText(turn.prefilled)}, ideal ${countText(turn.ideal)}`],
    ["output", `${countText(turn.output)} tokens`],
  ];
  if (turn.preempted) facts.push(["preempted", `${turn.preempted} ×`]);
  if (turn.reason !== "stop") facts.push(["ended", turn.reason]);
  return facts;
}

function toolFacts(tool) {
  const facts = [["started", `at ${spanText(tool.start)}`], ["took", spanText(tool.end - tool.start)]];
  if (tool.status) facts.push(["status", tool.status]);
  if (tool.exit !== null) facts.push(["exit code", String(tool.exit)]);
  if (tool.memory !== null) facts.push(["peak memory", bytesText(tool.memory)]);
  if (tool.cpu !== null) facts.push(["CPU", spanText(tool.cpu)]);
  return facts;
}

function pinFacts(pin) {
  return [
    ["from", `${spanText(pin.start)}, held ${spanText(pin.end - pin.start)}`],
    ["TTL", pin.ttl === null ? "none" : spanText(pin.ttl)],
    ["kept", `${countText(pin.tokens)} tokens`],
    ["outcome", OUTCOME_NAMES[pin.outcome]],
  ];
}

function sampleFacts(sample) {
  const tokens = (value) => `${countText(value)} tokens`;
  return [
    ["at", spanText(sample.time)],
    ["pinned", tokens(sample.pinned)],
    ["leased, not pinned", tokens(sample.leased - sample.pinned)],
    ["cached", tokens(sample.cached)],
    ["free", tokens(sample.free)],
    ["running", `${sample.running} turns`],
    ["waiting", `${sample.waiting} turns`],
  ];
}

function programFacts(program) {
  const facts = [
    ["arrived", `at ${spanText(program.arrival)}`],
    ["took", spanText(program.finished - program.arrival)],
    ["outcome", program.outcome],
  ];
  if (program.detail) facts.push(["detail", program.detail]);
  return facts;
}

function describe(hit) {
  const item = hit.item;
  if (!item) return { title: "program", css: "", facts: programFacts(hit.program), text: "" };
  if (item.type === "turn") {
    const title = `turn ${item.index + 1}${item.first ? ", first of its context" : ""}`;
    return { title: `${title}: ${KINDS[hit.kind]}`, css: KINDS[hit.kind], facts: turnFacts(item), text: item.text };
  }
  if (item.type === "tool") {
    return { title: `tool: ${item.name}`, css: "tool", facts: toolFacts(item), text: item.command };
  }
  if (item.type === "pin") return { title: "KV pin", css: "pin", facts: pinFacts(item), text: "" };
  return { title: "KV pool and queue", css: "leased", facts: sampleFacts(item), text: "" };
}

function fillTip(tip, hit) {
  const { title, css, facts, text } = describe(hit);
  tip.replaceChildren();
  if (hit.program) {
    const context = hit.lane && hit.lane.context !== "main" ? ` · ${hit.lane.context}` : "";
    tip.append(node("div", "tip-program", hit.program.name + context));
  }
  const head = node("div", "tip-head");
  if (css) head.append(node("i", `chip ${css}`));
  head.append(node("b", "", title));
  tip.append(head);
  const list = node("dl");
  for (const [name, value] of facts) list.append(node("dt", "", name), node("dd", "", value));
  tip.append(list);
  if (text) tip.append(node("pre", "", text));
}

function placeTip(tip, x, y) {
  tip.hidden = false;
  const room = { width: document.documentElement.clientWidth, height: window.innerHeight };
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 18 + width > room.width ? Math.max(6, x - width - 14) : x + 18;
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(6, Math.min(y + 14, room.height - height - 8))}px`;
}

// Reads what report_data.py wrote: columns back to arrays, differences back to times in seconds.

const KINDS = ["queue", "prefill", "decode", "tool"];
const REASONS = ["stop", "length", "cancelled", "failed"];
const OUTCOMES = ["handed_off", "expired", "broken", "final"];

function readJson(id) {
  const node = document.getElementById(id);
  return node ? JSON.parse(node.textContent) : null;
}

function unpackColumn(packed, count) {
  if (Array.isArray(packed)) return packed;
  const values = new Array(count).fill(packed.k);
  let place = 0;
  packed.i.forEach((gap, index) => {
    place += gap;
    values[place] = packed.v[index];
  });
  return values;
}

function unpackTable(table) {
  const columns = { count: table.count };
  for (const name of Object.keys(table)) {
    if (name !== "count") columns[name] = unpackColumn(table[name], table.count);
  }
  return columns;
}

function cumulative(steps) {
  let sum = 0;
  return steps.map((step) => (sum += step));
}

function decodePrograms(data) {
  const table = data.programs;
  const count = table.name.length;
  const text = (name) => unpackColumn(table[name], count);
  const [tenant, outcome, detail] = ["tenant", "outcome", "detail"].map(text);
  return table.name.map((name, at) => ({
    name: data.strings[name],
    tenant: data.strings[tenant[at]],
    arrival: table.arrival[at] * data.unit,
    finished: table.finished[at] * data.unit,
    outcome: data.strings[outcome[at]],
    detail: data.strings[detail[at]],
    lanes: [],
  }));
}

function decodeTurns(data, lanes) {
  const t = unpackTable(data.turns);
  const lane = cumulative(t.lane);
  const index = cumulative(t.index);
  let previous = 0;
  for (let at = 0; at < t.count; at++) {
    const begin = previous + t.begin[at];
    const end = begin + t.end[at];
    const admit = t.admit[at] === null ? null : begin + t.admit[at];
    const token = t.token[at] === null ? null : begin + t.token[at];
    const queue = (admit === null ? end : admit) - begin + t.queue[at];
    const decode = end - (token === null ? end : token) + t.decode[at];
    previous = end;
    lanes[lane[at]].turns.push({
      type: "turn", lane: lane[at], index: index[at], first: t.first[at] === 1,
      start: begin * data.unit, end: end * data.unit,
      admit: admit === null ? null : admit * data.unit,
      token: token === null ? null : token * data.unit,
      queue: queue * data.unit, decode: decode * data.unit,
      prefill: Math.max(0, end - begin - queue - decode) * data.unit,
      prompt: t.prompt[at], cached: t.prompt[at] - t.fresh[at],
      prefilled: t.fresh[at] + t.extra[at], ideal: t.ideal[at], output: t.output[at],
      preempted: t.preempted[at], reason: REASONS[t.reason[at]], text: data.strings[t.text[at]],
    });
  }
}

function decodeTools(data, lanes) {
  const t = unpackTable(data.tools);
  const lane = cumulative(t.lane);
  const begin = cumulative(t.begin);
  for (let at = 0; at < t.count; at++) {
    lanes[lane[at]].tools.push({
      type: "tool", lane: lane[at],
      start: begin[at] * data.unit, end: (begin[at] + t.end[at]) * data.unit,
      name: data.strings[t.name[at]], status: data.strings[t.status[at]], exit: t.exit[at],
      memory: t.memory[at], cpu: t.cpu[at] === null ? null : t.cpu[at] / 1000,
      command: data.strings[t.command[at]],
    });
  }
}

function decodePins(data, lanes) {
  const t = unpackTable(data.pins);
  const lane = cumulative(t.lane);
  const begin = cumulative(t.begin);
  for (let at = 0; at < t.count; at++) {
    lanes[lane[at]].pins.push({
      type: "pin", lane: lane[at],
      start: begin[at] * data.unit, end: (begin[at] + t.end[at]) * data.unit,
      ttl: t.ttl[at] === null ? null : t.ttl[at] / 1000, tokens: t.tokens[at],
      outcome: OUTCOMES[t.outcome[at]],
    });
  }
}

// The drawn pieces of a lane, sorted by start. `reach` is the latest end so far, so that a binary
// search finds the first piece that may still be visible although pieces can overlap.
function segments(pieces) {
  pieces.sort((a, b) => a.start - b.start);
  const count = pieces.length;
  const out = {
    start: new Float64Array(count), end: new Float64Array(count),
    reach: new Float64Array(count), kind: new Uint8Array(count), item: new Array(count),
  };
  let reach = -Infinity;
  pieces.forEach((piece, at) => {
    reach = Math.max(reach, piece.end);
    out.start[at] = piece.start;
    out.end[at] = piece.end;
    out.reach[at] = reach;
    out.kind[at] = piece.kind;
    out.item[at] = piece.item;
  });
  return out;
}

function turnPieces(turn) {
  const admit = turn.admit === null ? turn.end : turn.admit;
  const token = turn.token === null ? turn.end : turn.token;
  const spans = [[turn.start, admit], [admit, token], [token, turn.end]];
  return spans
    .map(([start, end], kind) => ({ start, end, kind, item: turn }))
    .filter((piece) => piece.end > piece.start);
}

function decodeKv(data) {
  const table = unpackTable(data.kv);
  const time = cumulative(table.time).map((ticks) => ticks * data.unit);
  const { leased, pinned, cached, free, running, waiting } = table;
  return { count: table.count, time, leased, pinned, cached, free, running, waiting };
}

function decodeRun(data) {
  const programs = decodePrograms(data);
  const lanes = data.lanes.map(([program, context]) => ({
    program, context: data.strings[context], turns: [], tools: [], pins: [],
  }));
  decodeTurns(data, lanes);
  decodeTools(data, lanes);
  decodePins(data, lanes);
  lanes.forEach((lane, at) => {
    programs[lane.program].lanes.push(at);
    const toolPieces = lane.tools.map((item) => ({ start: item.start, end: item.end, kind: 3, item }));
    lane.bars = segments(lane.turns.flatMap(turnPieces).concat(toolPieces));
    lane.marks = segments(lane.pins.map((item) => (
      { start: item.start, end: item.end, kind: OUTCOMES.indexOf(item.outcome), item })));
  });
  const measured = lanes.flatMap((lane) => lane.tools.filter((tool) => tool.memory !== null));
  measured.sort((a, b) => a.start - b.start);
  return {
    policy: data.policy, seed: data.seed, pool: data.pool, complete: data.complete,
    end: Math.max(data.end * data.unit, 1e-3), programs, lanes, measured, kv: decodeKv(data),
  };
}

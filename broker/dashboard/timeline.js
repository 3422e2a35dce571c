/** The window as a picture: what came when, by type; where events are missing; from where to replay. */
import { BUCKETS, BUCKET_MS, KINDS, sparkOf } from "./store.js";

const TOP = 14, FOOT = 15, MINUTES = 5;
const LANES = { complaint: 4, bounced: 10 }; // where their marks are, from the top
const COLOURS = [...KINDS, "line", "ink-3", "bad-bg", "warn-bg", "accent"];

/** Colours of the style sheet, as a canvas takes them. */
function colours() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const found = {};
  for (const name of COLOURS) {
    probe.style.color = `var(--${name})`;
    found[name] = getComputedStyle(probe).color;
  }
  probe.remove();
  return found;
}

/** A canvas cleared, as sharp as the screen, to draw on in pixels of the page. */
function cleared(canvas, width, height) {
  const sharp = devicePixelRatio || 1;
  const [across, down] = [Math.round(width * sharp), Math.round(height * sharp)];
  if (canvas.width !== across || canvas.height !== down) Object.assign(canvas, { width: across, height: down });
  const drawing = canvas.getContext("2d");
  drawing.setTransform(sharp, 0, 0, sharp, 0, 0);
  drawing.clearRect(0, 0, width, height);
  return drawing;
}

export class Timeline {
  #canvas;
  #store;
  #colours;
  #font;
  #now = 0;
  #pointed = null;

  /** `replayFrom(seconds)` is called for a click. */
  constructor(canvas, store, replayFrom) {
    this.#canvas = canvas;
    this.#store = store;
    canvas.addEventListener("mousemove", ({ offsetX }) => this.#point(offsetX));
    canvas.addEventListener("mouseleave", () => this.#point(null));
    canvas.addEventListener("click", ({ offsetX }) => replayFrom(this.#secondsAgo(offsetX)));
    this.restyle();
  }

  restyle() {
    this.#colours = colours();
    this.#font = `11px ${getComputedStyle(this.#canvas).fontFamily}`;
  }

  #point(x) {
    this.#pointed = x;
    this.draw(this.#now);
  }

  #secondsAgo(x) {
    return Math.max(1, Math.round((1 - x / this.#canvas.clientWidth) * BUCKETS * (BUCKET_MS / 1_000)));
  }

  draw(now) {
    this.#now = now;
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    if (!width) return;
    const g = cleared(this.#canvas, width, height);
    g.font = this.#font;
    const last = Math.floor(now / BUCKET_MS);
    const columns = Array.from({ length: BUCKETS }, (_, index) => this.#store.kept(last - BUCKETS + 1 + index));
    const sumOf = (bucket) => KINDS.reduce((sum, kind) => sum + bucket.kinds[kind], 0);
    const most = columns.reduce((found, bucket) => (bucket ? Math.max(found, sumOf(bucket)) : found), 4);
    this.#axis(g, width, height);
    const step = width / BUCKETS;
    columns.forEach((bucket, index) => bucket && this.#column(g, bucket, index * step, step, height, most));
    g.fillStyle = this.#colours["ink-3"];
    g.textAlign = "left";
    g.fillText(`${Math.round((most / (BUCKET_MS / 1_000)) * 10) / 10}/s`, 2, TOP + 9);
    if (this.#pointed !== null) this.#pointer(g, width, height);
  }

  #axis(g, width, height) {
    const colour = this.#colours;
    g.fillStyle = colour.line;
    g.fillRect(0, height - FOOT, width, 1);
    for (let minute = 0; minute <= MINUTES; minute++) {
      const x = width * (1 - minute / MINUTES);
      g.fillStyle = colour.line;
      if (minute && minute < MINUTES) g.fillRect(Math.round(x), TOP, 1, height - FOOT - TOP);
      g.fillStyle = colour["ink-3"];
      g.textAlign = minute === 0 ? "right" : minute === MINUTES ? "left" : "center";
      g.fillText(minute ? `−${minute} min` : "now", x, height - 3);
    }
  }

  #column(g, bucket, x, step, height, most) {
    const colour = this.#colours, room = height - FOOT - TOP;
    if (bucket.paused) {
      g.fillStyle = colour["warn-bg"];
      g.fillRect(x, TOP, step + 0.5, room);
    }
    if (bucket.missed) this.#hatch(g, x, step + 0.5, room);
    for (const [kind, y] of Object.entries(LANES)) if (bucket.kinds[kind]) this.#mark(g, kind, x + step / 2, y, bucket.kinds[kind]);
    let y = height - FOOT;
    for (const kind of KINDS) {
      if (!bucket.kinds[kind]) continue;
      const bar = Math.max(kind === "received" ? 1 : 2, (bucket.kinds[kind] / most) * room);
      y -= bar;
      g.fillStyle = colour[kind];
      g.fillRect(x + 0.5, y, Math.max(1, step - 1.2), bar);
    }
  }

  #hatch(g, x, width, room) {
    g.save();
    g.beginPath();
    g.rect(x, TOP, width, room);
    g.clip();
    g.fillStyle = this.#colours["bad-bg"];
    g.fillRect(x, TOP, width, room);
    g.strokeStyle = this.#colours.complaint;
    g.beginPath();
    for (let y = TOP - 8; y < TOP + room + 8; y += 6) {
      g.moveTo(x - 2, y + 8);
      g.lineTo(x + width + 2, y - 2);
    }
    g.stroke();
    g.restore();
  }

  /** A triangle for bounces, a diamond for complaints, a little larger for more. */
  #mark(g, kind, x, y, number) {
    const size = Math.min(3.2, 1.4 + Math.log2(number) / 2);
    g.fillStyle = this.#colours[kind];
    g.beginPath();
    g.moveTo(x, y - size);
    if (kind === "bounced") {
      g.lineTo(x + size, y + size);
      g.lineTo(x - size, y + size);
    } else {
      g.lineTo(x + size, y);
      g.lineTo(x, y + size);
      g.lineTo(x - size, y);
    }
    g.fill();
  }

  #pointer(g, width, height) {
    const x = this.#pointed, onTheRight = x > width - 170;
    g.fillStyle = this.#colours.accent;
    g.fillRect(x, TOP, 1.5, height - FOOT - TOP);
    g.textAlign = onTheRight ? "right" : "left";
    g.fillText(`replay the last ${this.#secondsAgo(x)} s`, x + (onTheRight ? -8 : 8), TOP + 10);
  }
}

const SVG = "http://www.w3.org/2000/svg";
const SPARK = { width: 52, height: 18, bars: 26 };

/** An empty picture of what an inbox got. No canvas: many of them would each be a layer, and slow down every frame. */
export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${SPARK.width} ${SPARK.height}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(SVG, "path"));
  return svg;
}

/** Draw into it what an inbox got in the last minute. */
export function drawSpark(svg, inbox, now) {
  const { height, bars } = SPARK;
  const last = Math.floor(now / BUCKET_MS);
  const most = inbox.sparks.reduce((found, number) => Math.max(found, number), 2);
  let path = "";
  for (let index = 0; index < bars; index++) {
    const number = sparkOf(inbox, last - bars + 1 + index);
    if (number) path += `M${index * 2 + 1} ${height}v-${Math.max(1.5, (number / most) * (height - 2)).toFixed(1)}`;
  }
  if (svg.drawn !== path) svg.firstChild.setAttribute("d", path);
  svg.drawn = path;
}

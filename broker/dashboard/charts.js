/** Lines of the last two minutes, a point a second. A point is a number; null: nothing is known of that second. */
const SVG = "http://www.w3.org/2000/svg";
const POINTS = 120, WIDTH = 240, HEIGHT = 48, STEP = WIDTH / POINTS;

export class Chart {
  #svg;
  #lines;
  #series;

  /** `classes`: of each line, the one below the others first. */
  constructor(svg, ...classes) {
    this.#svg = svg;
    this.#series = classes.map(() => []);
    this.#lines = classes.map((name) => {
      const line = document.createElementNS(SVG, "path");
      line.setAttribute("class", name);
      return line;
    });
    svg.append(...this.#lines);
  }

  /** Add a point to each line; what is older than two minutes is forgotten. */
  push(...values) {
    this.#series.forEach((series, index) => {
      series.push(values[index] ?? null);
      if (series.length > POINTS) series.shift();
    });
  }

  draw() {
    const most = Math.max(Number.EPSILON, ...this.#series.flat().filter((value) => value !== null)) * 1.1;
    this.#lines.forEach((line, index) => line.setAttribute("d", pathOf(this.#series[index], most)));
  }
}

function pathOf(series, most) {
  let path = "", pen = "M";
  series.forEach((value, index) => {
    if (value === null) {
      pen = "M";
      return;
    }
    const x = WIDTH - (series.length - 1 - index) * STEP - 1, y = HEIGHT - 1 - (value / most) * (HEIGHT - 3);
    // A point alone is a dot: a line of no length has round ends.
    path += `${pen}${x.toFixed(1)} ${y.toFixed(1)}${pen === "M" ? "h0" : ""}`;
    pen = "L";
  });
  return path;
}

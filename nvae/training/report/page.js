"use strict";
const position = (event, svg) => {
  const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
  return [(event.clientX - box.left) * view.width / box.width, (event.clientY - box.top) * view.height / box.height];
};
const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);

for (const figure of document.querySelectorAll(".chart")) {
  const lines = JSON.parse(figure.dataset.lines).map(line => line[1]);
  const outputs = figure.querySelectorAll("output"), at = figure.querySelector(".at");
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor");
  const show = (x, inside) => {
    const points = lines.map(line => inside ? nearest(line, x) : line[line.length - 1]);
    points.forEach((point, i) => { outputs[i].textContent = point[3]; });
    at.textContent = inside ? "epoch " + points[0][2] : "";
    const to = inside ? points[0][0] : -9;
    cursor.setAttribute("x1", to);
    cursor.setAttribute("x2", to);
  };
  svg.addEventListener("pointermove", event => show(position(event, svg)[0], true));
  svg.addEventListener("pointerleave", () => show(0, false));
}

for (const figure of document.querySelectorAll(".heat")) {
  const map = JSON.parse(figure.dataset.map), at = figure.querySelector(".at"), svg = figure.querySelector("svg");
  const area = figure.querySelector("image");
  const cell = (value, axis, size, count) => {
    const index = Math.floor((value - area[axis].baseVal.value) * count / area[size].baseVal.value);
    return Math.min(Math.max(index, 0), count - 1);
  };
  svg.addEventListener("pointermove", event => {
    const [x, y] = position(event, svg);
    const group = cell(y, "y", "height", map.groups.length), column = cell(x, "x", "width", map.epochs.length);
    at.textContent = `group ${map.groups[group]}, epoch ${map.epochs[column]}: ${map.values[group][column]} nats`;
  });
  svg.addEventListener("pointerleave", () => { at.textContent = ""; });
}

const film = document.getElementById("film"), slider = film && film.querySelector("input");
if (slider) {
  const frames = film.querySelectorAll("figure");
  slider.addEventListener("input", () => frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); }));
}

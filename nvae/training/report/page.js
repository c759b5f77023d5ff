"use strict";
const nearest = (points, epoch) => points.reduce((a, b) => Math.abs(b[0] - epoch) < Math.abs(a[0] - epoch) ? b : a);

for (const figure of document.querySelectorAll(".chart")) {
  const {area: [left, bottom, width, height], end, curves, groups, epochs, values} = JSON.parse(figure.dataset.readout);
  const outputs = figure.querySelectorAll("output"), at = figure.querySelector(".at");
  const plot = figure.querySelector(".plot"), cursor = figure.querySelector(".cursor");
  const cell = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width - left) / width;
    const y = ((event.clientY - box.top) / box.height - (1 - bottom - height)) / height;
    if (groups) {
      const group = cell(y, groups.length), column = cell(x, epochs.length);
      at.textContent = `group ${groups[group]}, epoch ${epochs[column]}: ${values[group][column]} nats`;
      return;
    }
    const points = curves.map(curve => nearest(curve.values, x * end));
    points.forEach((point, i) => { outputs[i].textContent = point[1]; });
    at.textContent = "epoch " + points[0][0];
    cursor.style.left = `${100 * (left + width * points[0][0] / end)}%`;
    cursor.hidden = false;
  });
  plot.addEventListener("pointerleave", () => {
    at.textContent = "";
    cursor.hidden = true;
    outputs.forEach((output, i) => { output.textContent = curves[i].values[curves[i].values.length - 1][1]; });
  });
}

const film = document.getElementById("film"), slider = film && film.querySelector("input");
if (slider) {
  const frames = film.querySelectorAll("figure");
  slider.addEventListener("input", () => frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); }));
}

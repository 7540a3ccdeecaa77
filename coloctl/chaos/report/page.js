"use strict";
// The moment under the pointer, through all lanes.
for (const chart of document.querySelectorAll("svg.chart")) {
  const given = (name) => Number(chart.dataset[name]);
  const line = chart.querySelector("line.cross");
  const words = chart.querySelector("text.cross");
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const share = (x - given("left")) / (given("width") - given("left"));
    chart.classList.toggle("pointed", share >= 0 && share <= 1);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
    words.setAttribute("x", x);
    words.textContent = (given("from") + share * given("span")).toFixed(3) + " s";
  });
  chart.addEventListener("pointerleave", () => chart.classList.remove("pointed"));
}
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const command = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
  });
}
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});

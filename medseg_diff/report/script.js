"use strict";
document.body.classList.add("js");
for (const viewer of document.querySelectorAll(".viewer")) {
  const slices = [...viewer.querySelectorAll(".slice")];
  const slider = viewer.querySelector("input");
  const place = viewer.querySelector("output");
  if (!slider) continue;
  const show = () => {
    slices.forEach((slice, index) => { slice.hidden = index !== slider.valueAsNumber; });
    place.value = slices[slider.valueAsNumber].dataset.place;
  };
  slider.addEventListener("input", show);
  viewer.querySelector(".controls").hidden = false;
  show();
}
for (const hint of document.querySelectorAll(".hint")) hint.hidden = false;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const back = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", back ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        // Blanks stay at the end whichever way the rest runs.
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y)
          ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return back ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

"use strict";
(function () {
  function keyOf(row, column) {
    const cell = row.cells[column];
    const key = cell ? cell.getAttribute("data-key") : null;
    return key === null ? (cell ? cell.textContent.trim() : "") : Number(key);
  }
  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1; // what has no number stands last
  }
  function sort(table, header, column) {
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows, (row, at) => ({ row, at, key: keyOf(row, column) }));
    rows.sort((a, b) => (down ? -1 : 1) * compare(a.key, b.key) || a.at - b.at);
    body.append(...rows.map((each) => each.row));
  }
  function filter(table, words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sort(table, header, column));
      header.replaceChildren(button);
    });
    const label = document.createElement("label");
    const input = document.createElement("input");
    label.className = "filter";
    label.textContent = "Show rows with";
    input.type = "search";
    input.addEventListener("input", () => filter(table, input.value));
    label.append(input);
    table.parentElement.before(label);
  }
})();

"use strict";
(() => {
  const value = (cell) => {
    const given = cell.dataset.value;
    if (given !== undefined) return given === "" ? null : Number(given);
    const text = cell.textContent.trim();
    return text === "" ? null : text;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), "en", { numeric: true });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    table.querySelectorAll("thead th").forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...body.rows].map((row, place) => ({ row, place, key: value(row.cells[column]) }));
        // Rows without a value stay last, whichever way the others go.
        rows.sort((a, b) => (a.key === null || b.key === null ? compare(a.key, b.key)
          : (down ? -1 : 1) * compare(a.key, b.key)) || a.place - b.place);
        body.append(...rows.map((each) => each.row));
      });
    });
  }

  const search = document.querySelector("[data-filter]");
  const flag = document.querySelector("[data-flags]:is(select)");
  const records = document.getElementById("all-records");
  const count = document.getElementById("all-records-count");
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of records.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      const flags = row.dataset.flags.split(" ");
      const fits = words.every((word) => text.includes(word)) && (!flag.value || flags.includes(flag.value));
      row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${records.tBodies[0].rows.length}`;
  };
  if (search && flag && records) {
    search.addEventListener("input", filter);
    flag.addEventListener("change", filter);
  }
  const states = document.querySelector("[data-states]");
  states?.addEventListener("change", () => {
    for (const row of document.getElementById("claims").tBodies[0].rows) {
      row.hidden = states.value !== "" && row.dataset.state !== states.value;
    }
  });

  const dialog = document.getElementById("dialog");
  const inside = document.getElementById("dialog-body");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.number");
    if (!link) return;
    const record = document.getElementById(link.hash.slice(1));
    if (!record || !dialog.showModal) return;
    event.preventDefault();
    const heading = document.createElement("h3");
    heading.textContent = record.querySelector("summary").textContent;
    inside.replaceChildren(heading, record.querySelector(".body").cloneNode(true));
    dialog.showModal();
    inside.scrollTop = 0;
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  const reveal = () => {
    const record = location.hash && document.getElementById(location.hash.slice(1));
    if (record && record.matches("details.record")) record.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
})();

/* Filters and sorting for the gallery and the scoreboard. Without script the pages show everything, in order. */
(() => {
  "use strict";

  const plain = (text) => text.toLowerCase().normalize("NFKD");

  function setUpFilters(form) {
    const items = [...document.querySelectorAll(form.dataset.target)];
    const fields = [...form.querySelectorAll("[data-filter]")];
    const shown = form.querySelector(".lb-shown");
    const text = new Map(items.map((item) => [item, plain(item.textContent)]));
    const query = new URLSearchParams(location.search);

    const fits = (item, name, value) => {
      if (!value) return true;
      if (name === "text") return plain(value).split(/\s+/).every((word) => text.get(item).includes(word));
      if (name in item.dataset) return item.dataset[name].split(" ").includes(value);
      return item.classList.contains(`lb-${name === "verdict" ? "has" : name}-${value}`);
    };

    const apply = () => {
      let count = 0;
      for (const item of items) {
        const visible = fields.every((field) => fits(item, field.dataset.filter, field.value));
        item.classList.toggle("lb-hidden", !visible);
        count += visible;
      }
      shown.textContent = `${count} of ${items.length} shown`;
      const state = new URLSearchParams();
      for (const field of fields) if (field.value) state.set(field.dataset.filter, field.value);
      const search = state.toString();
      history.replaceState(null, "", (search ? `?${search}` : location.pathname) + location.hash);
    };

    for (const field of fields) {
      const wanted = query.get(field.dataset.filter);
      if (wanted !== null) field.value = wanted;
      field.addEventListener("input", apply);
    }
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    apply();
  }

  /* What a cell sorts by: the exact number behind the printed one, a verdict's rank, else its text. */
  function sortKey(row, column) {
    const cell = row.children[column];
    const exact = cell.querySelector("data[value]")?.value ?? cell.querySelector("[data-sort]")?.dataset.sort;
    if (exact !== undefined && exact !== "None") return Number(exact);
    return cell.querySelector(".lb-none") ? NaN : cell.textContent.trim().toLowerCase();
  }

  function compare(a, b) {
    const missing = (v) => typeof v === "number" && Number.isNaN(v);
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  }

  function sortBy(table, column, ascending) {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [sortKey(row, column), row]);
    const missing = rows.filter(([key]) => typeof key === "number" && Number.isNaN(key));
    const known = rows.filter((pair) => !missing.includes(pair)).sort((a, b) => compare(a[0], b[0]));
    if (!ascending) known.reverse();
    body.append(...[...known, ...missing].map(([, row]) => row)); // what was not measured stays last
    [...table.tHead.rows[0].cells].forEach((cell, i) => {
      if (i === column) cell.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else cell.removeAttribute("aria-sort");
    });
  }

  function setUpSorting(table) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, i) =>
      head.querySelector("button").addEventListener("click", () => sortBy(table, i, head.getAttribute("aria-sort") !== "ascending")),
    );
    const form = document.querySelector(".lb-filters");
    if (!form) return;
    const label = document.createElement("label"); // column titles are hidden on a phone: a menu sorts there
    label.className = "lb-sort-menu";
    label.append("Sort by ");
    const menu = label.appendChild(document.createElement("select"));
    menu.append(new Option("book order", ""), ...heads.map((head, i) => new Option(head.textContent.trim(), i)));
    const order = [...table.tBodies[0].rows];
    menu.addEventListener("change", () => (menu.value ? sortBy(table, Number(menu.value), true) : table.tBodies[0].append(...order)));
    form.insertBefore(label, form.querySelector(".lb-shown"));
  }

  /* The theme's own controls, with names that a screen reader and a voice command can use. */
  function nameControls() {
    for (const button of document.querySelectorAll(".search-button-field")) button.setAttribute("aria-label", button.innerText.replace(/\s+/g, " ").trim() || "Search");
    for (const icon of document.querySelectorAll(".theme-switch-button > *")) icon.setAttribute("aria-hidden", "true");
    for (const summary of document.querySelectorAll("summary[aria-label='Toggle hidden content']")) summary.removeAttribute("aria-label");
    for (const summary of document.querySelectorAll("nav.bd-links summary")) summary.setAttribute("aria-label", "Show the pages below");
  }

  function start() {
    nameControls();
    document.querySelectorAll("table:has(.lb-sort)").forEach(setUpSorting);
    document.querySelectorAll(".lb-filters").forEach(setUpFilters);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();

const charts = JSON.parse(document.getElementById("charts").textContent), views = [];
const groupOf = part => part.closest("[data-group]") ?? document;
const choose = (group, batch, on) => {
  const buttons = [...group.querySelectorAll(".legend button")], chosen = buttons.find(each => Number(each.dataset.batch) === batch);
  if (!chosen) return;
  for (const each of buttons) each.setAttribute("aria-pressed", String(on && each === chosen));
  for (const [of, view] of views) if (of === group) view.signal("CHOSEN", on ? batch : 0).run();
  for (const line of group.querySelectorAll("tr[data-batch]")) line.classList.toggle("chosen", on && Number(line.dataset.batch) === batch);
  const said = group.querySelector(".said");
  if (said) said.dataset.asks ??= said.textContent;
  if (said) said.textContent = on ? chosen.dataset.said : said.dataset.asks;
};
const show = (told, number) => {
  const scroller = document.querySelector(`#table-${told.dataset.table} .scroll`), [top, ...lines] = scroller.querySelectorAll("tr"), line = lines[number];
  for (const each of lines) each.classList.toggle("chosen", each === line);
  const cells = [...line.cells].map((cell, place) => [top.cells[place].textContent, cell.innerText]).filter(([, text]) => text !== "-");
  told.textContent = cells.map(([name, text]) => `${name}: ${text.replace("\n", " ")}`).join("; ");
  scroller.scrollTop = line.offsetTop - top.offsetHeight;
};
const WAYS = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]};
const middle = cell => { const box = cell.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] };
const nearest = (cells, cell, [right, down]) => {
  const [x, y] = middle(cell), away = cells.map(each => { const [to, below] = middle(each); return [(to - x) * right + (below - y) * down, Math.abs((to - x) * down) + Math.abs((below - y) * right), each] });
  return away.filter(([ahead, aside]) => ahead > 1 && aside < 1).sort(([one], [other]) => one - other)[0]?.[2];
};
const walked = (cells, told) => cells.forEach((cell, place) => { // one stop of the tabulator; arrows go from cell to cell
  cell.setAttribute("role", "button");
  cell.setAttribute("tabindex", place ? -1 : 0);
  cell.addEventListener("focus", () => {
    for (const each of cells) each.setAttribute("tabindex", each === cell ? 0 : -1);
    show(told, cell.__data__.datum.row);
  });
  cell.addEventListener("keydown", event => {
    if (!WAYS[event.key]) return;
    event.preventDefault();
    nearest(cells, cell, WAYS[event.key])?.focus();
  });
});
for (const [name, spec] of Object.entries(charts)) {
  const figure = document.getElementById(name), live = figure.querySelector(".live"), still = figure.querySelector(".still"), group = groupOf(figure), told = figure.querySelector("output");
  if (still) still.hidden = true;
  const shown = made => {
    views.push([group, made.view]);
    still?.remove();
    made.view.addEventListener("click", (event, item) => { if (item?.datum?.batch) choose(group, item.datum.batch, true); if (told && item?.datum?.row >= 0) show(told, item.datum.row) });
    if (told) walked([...live.querySelectorAll("path")].filter(({__data__: item}) => item?.cursor && item.datum.row >= 0), told);
    const pressed = group.querySelector(".legend button[aria-pressed=true]");
    if (pressed) made.view.signal("CHOSEN", Number(pressed.dataset.batch)).run();
  };
  const failed = () => { if (still) still.hidden = false; else live.textContent = "This chart could not be drawn; its numbers are in the table." };
  vegaEmbed(live, {...spec, width: "container"}, {actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: {disableDefaultStyle: true}})
    .then(shown, failed);
}
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => choose(groupOf(button), Number(button.dataset.batch), button.getAttribute("aria-pressed") !== "true"));

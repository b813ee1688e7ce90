"""The 3D Slicer module: choose images and the probe's box, plan, guide, see the results. Research use only."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ctk
import qt
from hepalign_slicer.session import Guidance, RefusedError, Session, probe_box
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleWidget,
)

import slicer

_COLOURS = {"accept": "#1d6b41", "review": "#ffb52e"}
_REJECT = "#b3201f"


class Hepalign(ScriptedLoadableModule):  # type: ignore[misc]
    """The module's entry in Slicer's list."""

    def __init__(self, parent: Any) -> None:
        super().__init__(parent)
        parent.title = "Hepalign"
        parent.categories = ["Registration"]
        parent.contributors = ["The Hepalign developers"]
        parent.helpText = "MR and planning CT on the intra-procedural CT of a liver ablation. Research use only."


class HepalignLogic(ScriptedLoadableModuleLogic):  # type: ignore[misc]
    """Nodes in, nodes out; the calls themselves are in `hepalign_slicer.session`."""

    def save(self, nodes: dict[str, Any], folder: Path) -> dict[str, Path]:
        """Writes the chosen nodes as NIfTI, by role."""
        paths = {role: folder / f"{role}.nii.gz" for role, node in nodes.items() if node is not None}
        for role, path in paths.items():
            if not slicer.util.saveNode(nodes[role], str(path)):
                raise RefusedError(f"{role} cannot be written as NIfTI", "usage")
        return paths

    def load(self, guidance: Guidance) -> None:
        """Loads the results into the scene."""
        for result in guidance.results:
            load = slicer.util.loadVolume if result.kind == "volume" else slicer.util.loadLabelVolume
            load(str(result.path), {"name": result.name})


class HepalignWidget(ScriptedLoadableModuleWidget):  # type: ignore[misc]
    """The panel."""

    def setup(self) -> None:  # noqa: D102 (Slicer's name)
        super().setup()
        self.logic, self.case = HepalignLogic(), ""
        form = qt.QFormLayout()
        box = ctk.ctkCollapsibleButton()
        box.text = "Hepalign: research use only"
        box.setLayout(form)
        self.layout.addWidget(box)
        self.url, self.token = qt.QLineEdit("http://127.0.0.1:8000"), qt.QLineEdit()
        self.token.setEchoMode(qt.QLineEdit.Password)
        form.addRow("Service", self.url)
        form.addRow("Token", self.token)
        self.nodes = {role: self._chooser("vtkMRMLScalarVolumeNode") for role in ("pmr", "pct", "ict")}
        self.nodes |= {role: self._chooser("vtkMRMLLabelMapVolumeNode") for role in ("pmr-tumour", "pct-liver")}
        for role, chooser in self.nodes.items():
            form.addRow(role, chooser)
        self.probe = self._chooser("vtkMRMLMarkupsROINode")
        form.addRow("Box around the probe", self.probe)
        for text, work in (("Plan", self.on_plan), ("Guide", self.on_guide)):
            button = qt.QPushButton(text)
            button.connect("clicked(bool)", work)
            form.addRow(button)
        self.verdict = qt.QLabel()
        self.verdict.wordWrap = True
        form.addRow(self.verdict)
        self.layout.addStretch(1)

    def on_plan(self, _checked: bool = False) -> None:
        """Sends the pre-procedural images and plans."""
        with slicer.util.tryWithErrorDisplay("Hepalign could not plan"), tempfile.TemporaryDirectory() as folder:
            images = self.logic.save(self._chosen("pmr", "pct", "pmr-tumour", "pct-liver"), Path(folder))
            self.case = self._session().plan(images, self._report)
            self._say(f"planned, case {self.case}", "")

    def on_guide(self, _checked: bool = False) -> None:
        """Sends the iCT and the box, guides, loads the results."""
        with slicer.util.tryWithErrorDisplay("Hepalign could not guide"), tempfile.TemporaryDirectory() as folder:
            images = self.logic.save(self._chosen("ict"), Path(folder))
            bounds = [0.0] * 6
            self.probe.currentNode().GetRASBounds(bounds)
            images["ict-probe-mask"] = Path(folder) / "probe.json"
            images["ict-probe-mask"].write_text(probe_box(bounds), encoding="utf-8")
            guidance = self._session().guide(self.case, images, Path(folder), self._report)
            self.logic.load(guidance)
            words = [guidance.status.upper(), *guidance.reasons]
            self._say(" · ".join(words), _COLOURS.get(guidance.status, _REJECT))

    def _session(self) -> Session:
        return Session(self.url.text, self.token.text)

    def _chosen(self, *roles: str) -> dict[str, Any]:
        return {role: self.nodes[role].currentNode() for role in roles}

    def _chooser(self, kind: str) -> Any:
        chooser = slicer.qMRMLNodeComboBox()
        chooser.nodeTypes = [kind]
        chooser.addEnabled, chooser.noneEnabled = False, True
        chooser.setMRMLScene(slicer.mrmlScene)
        return chooser

    def _report(self, step: str, done: float) -> None:
        self._say(f"{step} ({100 * done:.0f} %)", "")
        slicer.app.processEvents()

    def _say(self, text: str, colour: str) -> None:
        self.verdict.text = text
        self.verdict.styleSheet = f"background: {colour}; padding: 6px; font-weight: bold;" if colour else ""

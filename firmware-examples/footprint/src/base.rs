//! Nothing on top.

use embassy_time::Timer;

use crate::Board;

pub async fn run(mut board: Board) {
    loop {
        board.exchange().await;
        Timer::after_secs(1).await;
    }
}
